"""A tiny training run over a tiny store; also the program that tests start, kill and watch.

``python trainruns.py SHARDS OUT [JSON]``, alone or under ``torchrun``. The JSON object holds
settings of ``train`` to change and, of the run itself, ``workers`` (loader threads), ``pause``
(seconds after each step, so that a test can kill it in the middle) and ``poison``
([rank, step]: there, a batch makes the loss infinite).
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from iwm.config import merge
from iwm.data.loader import Loader
from iwm.data.reader import ShardStore
from iwm.models.registry import create_model
from iwm.settings import parse
from iwm.training.config import TrainConfig
from iwm.training.distributed import Ranks, ranks
from iwm.training.tracking import Tracker
from iwm.training.trainer import Trainer

SHAPE = {"width": 32, "depth": 1, "heads": 2}
VALUES: dict[str, Any] = {
    "model": {
        "name": "iwm",
        "image_size": [64, 64],
        "encoder": {"patch": 16, **SHAPE},
        "predictor": {**SHAPE, "dropout": 0.1},
        "objective": {"inverse": 1.0, "variance": 1.0, "covariance": 0.1},
        "ema_start": 0.9,
    },
    "epochs": 2,
    "batch_size": 24,
    "precision": "fp32",
    "device": "cpu",
    "checkpoint_every": 5,
    "log_every": 1,
}
ACTION: dict[str, Any] = {
    **{key: value for key, value in VALUES.items() if key != "model"},
    "model": {
        "name": "action",
        "image_size": [64, 64],
        "encoder": {"patch": 16, "pool": "flat", **SHAPE},
        "dynamics": {**SHAPE, "patch_depth": 1},
    },
    "epochs": 3,
    "window": 4,
}
VQVAE: dict[str, Any] = {
    **{key: value for key, value in VALUES.items() if key != "model"},
    "model": {
        "name": "vqvae",
        "image_size": [64, 64],
        "stem": 8,
        "channels": [16],
        "blocks": 1,
        "decoder_blocks": 1,
        "heads": 2,
    },
}
TOKENS: dict[str, Any] = {
    **{key: value for key, value in ACTION.items() if key != "model"},
    "model": {
        "name": "vqvae-dynamics",
        "image_size": [64, 64],
        "tokenizer": {key: value for key, value in VQVAE["model"].items() if key != "name"},
        "detail": 8,
        **SHAPE,
        "depth": 2,
    },
}
PERMANENCE: dict[str, Any] = {
    **{key: value for key, value in VALUES.items() if key != "model"},
    "model": {
        "name": "permanence",
        "image_size": [64, 64],
        "width": 16,
        "match": 8,
        "head": 16,
    },
    "window": 3,
}


ALONE = Ranks(0, 1, torch.device("cpu"))


def make(
    store: ShardStore,
    out: Path,
    *,
    workers: int = 1,
    trackers: tuple[Tracker, ...] = (),
    place: Ranks = ALONE,
    base: dict[str, Any] = VALUES,
    **over: Any,
) -> Trainer:
    """A trainer of 24 steps, or as ``base`` and ``over`` say, over the fixture store."""
    config = parse(TrainConfig, merge(base, over), "train.tiny")
    settings = dict(config.model)
    acting = settings["name"] in ("action", "vqvae-dynamics")
    vocabulary = store.all_actions() if acting else None
    if vocabulary:
        settings["vocabulary"] = vocabulary
    batches = Loader(
        store,
        "train",
        config.batch_size,
        config.seed,
        window=config.window,
        vocabulary=vocabulary,
        rank=place.rank,
        world=place.world,
        workers=workers,
    )
    torch.manual_seed(config.seed)
    model = create_model(settings.pop("name"), **settings)
    return Trainer(
        model,
        config,
        batches,
        out,
        place,
        data_revision=store.info.revision,
        trackers=trackers,
        name="tiny",
    )


class Pause:
    """A tracker that says each step and rests."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def start(self, step: int, parameters: dict[str, Any]) -> None:
        """Say where it starts."""
        print(f"start {step}", flush=True)

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Say the step; rest."""
        print(f"step {step}", flush=True)
        time.sleep(self.seconds)

    def finish(self, status: str) -> None:
        """Say how it ended."""
        print(f"finish {status}", flush=True)


def poison(trainer: Trainer, rank: int, step: int) -> None:
    """Make the loss of one rank infinite at one step."""
    forward: Callable[..., Any] = trainer.model.forward
    calls = 0

    def poisoned(batch: Any) -> Any:
        nonlocal calls
        loss, logs = forward(batch)
        calls += 1
        return (loss / 0.0 if calls == step else loss), logs

    if trainer.ranks.rank == rank:
        trainer.model.forward = poisoned  # type: ignore[method-assign]


def main() -> None:
    """Train as the command line says."""
    torch.set_num_threads(1)
    from iwm.errors import IwmError

    shards, folder, *rest = sys.argv[1:]
    over = json.loads(rest[0]) if rest else {}
    pause, bad = Pause(over.pop("pause", 0.0)), over.pop("poison", None)
    try:
        with ranks("cpu") as place:
            trainer = make(ShardStore(shards), Path(folder), trackers=(pause,), place=place, **over)
            if bad:
                poison(trainer, *bad)
            trainer.fit()
    except IwmError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()

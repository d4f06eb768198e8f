"""A tiny training run over a tiny store; also the program that the kill test runs.

``python trainruns.py SHARDS OUT WORKERS [SLEEP]`` trains with that many loader threads, pausing
SLEEP seconds after each step so that a test can kill it in the middle.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import torch

from iwm.data.loader import Loader
from iwm.data.reader import ShardStore
from iwm.models.registry import create_model
from iwm.settings import parse
from iwm.training.config import TrainConfig
from iwm.training.distributed import Ranks
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


def make(
    store: ShardStore,
    out: Path,
    *,
    workers: int = 1,
    trackers: tuple[Tracker, ...] = (),
    **over: Any,
) -> Trainer:
    """A trainer of 24 steps over the fixture store."""
    config = parse(TrainConfig, {**VALUES, **over}, "train.tiny")
    batches = Loader(store, "train", config.batch_size, config.seed, workers=workers)
    torch.manual_seed(config.seed)
    settings = dict(config.model)
    model = create_model(settings.pop("name"), **settings)
    return Trainer(
        model,
        config,
        batches,
        out,
        Ranks(0, 1, torch.device("cpu")),
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


if __name__ == "__main__":
    torch.set_num_threads(1)
    from iwm.errors import IwmError

    shards, folder, threads, *rest = sys.argv[1:]
    pause = Pause(float(rest[0]) if rest else 0.0)
    try:
        make(ShardStore(shards), Path(folder), workers=int(threads), trackers=(pause,)).fit()
    except IwmError as error:
        sys.exit(f"error: {error}")

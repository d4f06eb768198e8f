"""The models that are compared, how large an experiment is, and training one of them."""

from __future__ import annotations

from contextlib import redirect_stderr
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any, Literal

import torch

from benchmarks.paper_claims.world import SIZE, PictureBatches, draw_pictures
from iwm.models.iwm import IWM, model_config
from iwm.settings import parse
from iwm.training.config import TrainConfig
from iwm.training.distributed import Ranks
from iwm.training.trainer import Trainer

TRAIN_SEED = 0
"""Seed of the first training picture; the pictures of measuring begin far from it."""
WIDTH = 64
SHALLOW, DEEP = 1, 4
_DESTRUCTION = 0.2  # probability of each of blur, greyscale and solarize


@dataclass(frozen=True)
class Scale:
    """How large the experiment is."""

    seeds: int
    """Models an arm; every figure's interval is over them."""
    pictures: int
    """Training pictures."""
    epochs: int
    images: int
    """Pictures whose transformations are retrieved, each in a bank of its own."""
    labelled: int
    """Pictures with known truth for the probe and the fine-tuning, and as many to judge."""
    tuning_epochs: int
    batch_size: int = 128
    bank: int = 256
    queries: int = 8

    @property
    def steps(self) -> int:
        """Training steps of a model."""
        return self.epochs * (self.pictures // self.batch_size)


FULL = Scale(seeds=5, pictures=8192, epochs=9, images=32, labelled=2048, tuning_epochs=10)
QUICK = Scale(seeds=3, pictures=8192, epochs=4, images=16, labelled=1024, tuning_epochs=10)


@dataclass(frozen=True)
class Arm:
    """One kind of model."""

    name: str
    label: str
    conditioning: Literal["none", "sequence", "feature"]
    depth: int
    """Blocks of the predictor."""
    destructive: bool
    """Whether source views may be blurred, greyed and solarized; else colour jitter alone."""
    paper: float
    """MRR that the paper reports for its arm of this kind (arXiv 2403.00504)."""


ARMS = (
    Arm("none", "no conditioning", "none", DEEP, True, 0.00),
    Arm("sequence", "sequence conditioning", "sequence", DEEP, True, 0.82),
    Arm("feature", "feature conditioning", "feature", DEEP, True, 0.79),
    Arm("shallow", "feature, shallow predictor", "feature", SHALLOW, True, 0.09),
    Arm("jitter", "feature, jitter only", "feature", DEEP, False, 0.25),
    Arm("shallow-jitter", "feature, shallow, jitter only", "feature", SHALLOW, False, 0.11),
)
"""The paper has 12 and 18 blocks where these have SHALLOW and DEEP."""


def model_settings(arm: Arm) -> dict[str, Any]:
    """The arm's model as plain settings.

    No inverse dynamics: the paper has none, and it would put the transformations into the
    latents whatever the predictor does. Variance and covariance terms stand in for the paper's
    long schedule, as in every small profile.
    """
    probability = _DESTRUCTION if arm.destructive else 0.0
    shape = {"width": WIDTH, "heads": 4}
    return {
        "image_size": [SIZE, SIZE],
        "ema_start": 0.95,
        "encoder": {"patch": 8, "depth": 2, "pool": "cls+mean", **shape},
        "predictor": {
            "depth": arm.depth,
            "dropout": 0.0,
            "conditioning": arm.conditioning,
            **shape,
        },
        "objective": {"cls": 5.0, "cls_only": 5.0, "variance": 10.0, "covariance": 1.0},
        "augment": dict.fromkeys(("blur", "greyscale", "solarize"), probability),
    }


def train(arm: Arm, seed: int, scale: Scale, folder: Path) -> IWM:
    """Train one model, or go on with it, or load it where it is done.

    Args:
        arm: what kind.
        seed: of weights, order and views.
        scale: how long.
        folder: of its files, see :class:`iwm.training.trainer.Trainer`.

    Returns:
        The released model in eval mode.

    Raises:
        TrainingError: the loss is not finite, or the process was asked to stop.
    """
    settings = model_settings(arm)
    config = parse(
        TrainConfig,
        {
            "model": {"name": "iwm", **settings},
            "epochs": scale.epochs,
            "batch_size": scale.batch_size,
            "seed": seed,
            "precision": "fp32",
            "device": "cpu",
            "log_every": 8,
            "optim": {"lr": 0.004},
        },
        f"paper_claims.{arm.name}",
    )
    torch.manual_seed(seed)
    model = IWM(model_config(settings))
    pictures = draw_pictures(scale.pictures, TRAIN_SEED)
    trainer = Trainer(
        model,
        config,
        PictureBatches(pictures, scale.batch_size, seed),
        folder,
        Ranks(0, 1, torch.device("cpu")),
        data_revision=f"sprites-{SIZE}-{scale.pictures}",
        name=f"{arm.name}-{seed}",
    )
    with redirect_stderr(StringIO()):  # the caller shows the progress of all models together
        trainer.fit()
    return IWM.from_pretrained(folder)

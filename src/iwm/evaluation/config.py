"""Configuration of evaluation and gates."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from iwm.data.config import AugmentConfig
from iwm.errors import ConfigError
from iwm.settings import settings


@settings
class EvaluateConfig:
    """How a trained model is measured on held-out episodes."""

    split: Literal["val", "test"] = "test"
    images: Annotated[int, Field(gt=0)] = 256
    """Images measured; each gets its own bank."""
    bank: Annotated[int, Field(gt=1)] = 256
    """Latents per bank: the same image under that many transformations."""
    rank_images: Annotated[int, Field(gt=1)] = 1024
    """Frames over which the effective rank and deviations are taken."""
    queries: Annotated[int, Field(gt=0)] = 8
    """Predictions per image, each of a different member of its bank."""
    augment: AugmentConfig = AugmentConfig()
    """Strengths of the bank's jitter; the evaluation's own, whatever the model trained with."""
    bootstrap: Annotated[int, Field(ge=100)] = 1000
    """Resamples of a confidence interval, by episode."""
    seed: int = 0
    batch_size: Annotated[int, Field(gt=0)] = 256

    def __post_init__(self) -> None:
        """Refuse more queries than there are members."""
        if self.queries > self.bank:
            raise ConfigError(f"evaluate.queries {self.queries} exceeds evaluate.bank {self.bank}")


@settings
class Rule:
    """One condition of a gate: a figure of the metrics report and what it must beat.

    Exactly one of ``above``/``below`` (a constant), ``times`` (a multiple of
    ``baseline``) or a bare ``baseline`` (whose 95 % interval must not overlap)
    decides. ``figure`` and ``baseline`` are dotted keys of the metrics report.
    """

    figure: str
    above: float | None = None
    below: float | None = None
    baseline: str | None = None
    times: float | None = None
    why: str = ""

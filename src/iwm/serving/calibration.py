"""Calibrated figures of a prediction: from a model's own error estimate to what clients read.

Evaluation stores monotone tables in ``calibration.json``; serving only interpolates.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from iwm.errors import ModelError
from iwm.evaluation.surprise import KINDS, Surprise
from iwm.files import read_json

CALIBRATION_FILE = "calibration.json"

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Table:
    """A piecewise linear function, constant beyond its ends."""

    x: npt.NDArray[np.float64]
    y: npt.NDArray[np.float64]

    def __call__(self, value: Floats) -> Floats:
        """Interpolate; shape is kept."""
        return np.interp(value, self.x, self.y).astype(np.float32)


def _table(values: Any, x: str, y: str, where: str) -> Table:
    try:
        table = Table(np.asarray(values[x], np.float64), np.asarray(values[y], np.float64))
    except (KeyError, TypeError, ValueError):
        raise ModelError(f"{where}: expected lists {x!r} and {y!r} of numbers") from None
    sound = (
        table.x.ndim == table.y.ndim == 1
        and len(table.x) == len(table.y) > 0
        and np.isfinite(table.x).all()
        and np.isfinite(table.y).all()
        and (np.diff(table.x) >= 0).all()
    )
    if not sound:
        raise ModelError(f"{where}: {x!r} and {y!r} must be equally long, finite, {x!r} rising")
    return table


@dataclass(frozen=True)
class Figures:
    """Tables for one way of predicting."""

    error: Table
    """exp(log_error) -> expected distance to the true latent."""
    confidence: Table
    """Expected distance -> expected reciprocal rank, in [0, 1]."""
    surprise_scale: float
    """Distance x scale = surprise, whose held-out 95th percentile is the threshold."""
    combined: Surprise | None
    """The measure that also asks whether another action explains what came; for named actions."""

    @classmethod
    def read(cls, values: dict[str, Any], where: str) -> Figures:
        """From ``error`` {predicted, measured}, ``confidence`` {error, mrr}, ``surprise_scale``,
        and ``surprise`` {temperature, scale} where it is there.
        """
        error = _table(values.get("error"), "predicted", "measured", f"{where}: error")
        confidence = _table(values.get("confidence"), "error", "mrr", f"{where}: confidence")
        combined = None
        try:
            scale = float(values["surprise_scale"])
            if fitted := values.get("surprise"):
                combined = Surprise(
                    (error.x.tolist(), error.y.tolist()),
                    float(fitted["temperature"]),
                    {kind: float(fitted["scale"][kind]) for kind in KINDS},
                )
        except (KeyError, TypeError, ValueError) as wrong:
            raise ModelError(f"{where}: not a calibration of surprise: {wrong!r}") from None
        return cls(error, confidence, scale, combined)

    def __call__(self, log_error: Floats) -> tuple[Floats, Floats]:
        """``(mrr, uncertainty)`` for the error head's logarithms, same shape."""
        uncertainty = self.error(np.exp(np.clip(log_error, -30.0, 30.0)))
        return np.clip(self.confidence(uncertainty), 0.0, 1.0), uncertainty


@dataclass(frozen=True)
class Calibration:
    """What turns a predicted error into ``uncertainty`` and ``mrr``."""

    cls_only: Figures
    with_patches: Figures
    history: Figures
    """With earlier frames given."""
    surprise_threshold: float
    """What 5 % of ordinary play exceeds."""

    @classmethod
    def read(cls, path: Path) -> Calibration:
        """Read ``calibration.json``; what it has no tables of its own for takes the CLS-only ones.

        Raises:
            ModelError: not JSON, or a table is missing or not monotone.
        """
        try:
            values = read_json(path)
            threshold = float(values["surprise_threshold"])
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ModelError(f"{path}: not a calibration: {error!r}") from None
        patches, past = values.get("with_patches", values), values.get("history", values)
        return cls(
            Figures.read(values, str(path)),
            Figures.read(patches, f"{path}: with_patches"),
            Figures.read(past, f"{path}: history"),
            threshold,
        )

    def figures(self, *, with_patches: bool, with_history: bool) -> Figures:
        """Those of one way of predicting."""
        if with_history:
            return self.history
        return self.with_patches if with_patches else self.cls_only

"""What an agent knows of what it sees.

Everything in :mod:`iwm.agents` that takes a state takes any object with the attributes of
:class:`VisionState`; :class:`BeingState` is one for agents that have none of their own.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Latent = npt.NDArray[np.float32]


class VisionState(Protocol):
    """The vision part of a state; any object with these attributes."""

    vision_core_latent: Latent | None
    """``[D]`` of the last frame that the service saw."""
    vision_core_latent_prev: Latent | None
    """``[D]`` of the frame before it."""
    vision_core_timestamp: float
    """Unix time of the last frame's latent; 0 before the first."""
    vision_prediction_surprise: float
    """Of the last frame, calibrated: 95 % of ordinary play is below 2.0; 0 where not measured."""
    vision_mrr: float
    """The model's confidence in its prediction of the last frame, in [0, 1]."""
    vision_abstraction_index: float
    """How little latents change with colour jitter: 0 equivariant, 1 invariant."""
    vision_semantic: Latent | None
    """The last frame in the invariant stream, for reasoning."""
    vision_equivariant: Latent | None
    """The last frame in the equivariant stream, for control."""


@dataclass(eq=False)
class BeingState:
    """A state with nothing but vision and the last action."""

    vision_core_latent: Latent | None = None
    vision_core_latent_prev: Latent | None = None
    vision_core_timestamp: float = 0.0
    vision_prediction_surprise: float = 0.0
    vision_mrr: float = 0.0
    vision_abstraction_index: float = 0.0
    vision_semantic: Latent | None = None
    vision_equivariant: Latent | None = None
    last_action: str | None = None

    def export_snapshot(self) -> dict[str, Any]:
        """The state in figures, ready for JSON: see :func:`vision_snapshot`."""
        return {"last_action": self.last_action, "vision_world_model": vision_snapshot(self)}


def vision_snapshot(state: VisionState, now: float | None = None) -> dict[str, Any]:
    """The ``vision_world_model`` of a snapshot: plain values, no latents, no NaN.

    Args:
        state: any object with the attributes of :class:`VisionState`.
        now: Unix time; the present if ``None``.

    Returns:
        ``has_core_latent``, ``prediction_surprise``, ``mrr``, ``abstraction_index``, and
        ``core_age``: seconds since the last frame was seen, ``None`` before the first.
    """
    seen = state.vision_core_latent is not None
    age = (time.time() if now is None else now) - float(state.vision_core_timestamp)
    return {
        "has_core_latent": seen,
        "prediction_surprise": _finite(state.vision_prediction_surprise),
        "mrr": _finite(state.vision_mrr),
        "abstraction_index": _finite(state.vision_abstraction_index),
        "core_age": max(0.0, age) if seen and math.isfinite(age) else None,
    }


def _finite(value: float) -> float | None:
    number = float(value)
    return number if math.isfinite(number) else None

"""Temporal coherence: how well the last seconds hang together."""

from __future__ import annotations

import time
from collections.abc import Callable

from iwm.agents.being_state import VisionState


class TemporalCoherence:
    """Falls with every very surprising frame and comes back with time.

    Args:
        threshold: surprise above it lowers coherence.
        penalty: by how much.
        recovery: gained per second, up to 1.
        clock: seconds that only ever rise.
    """

    def __init__(
        self,
        threshold: float = 3.0,
        penalty: float = 0.1,
        recovery: float = 0.02,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.threshold, self.penalty, self.recovery = threshold, penalty, recovery
        self._clock = clock
        self._value, self._at = 1.0, clock()
        self._counted: float | None = None

    @property
    def value(self) -> float:
        """Coherence now, in [0, 1]."""
        now = self._clock()
        self._value = min(1.0, self._value + self.recovery * (now - self._at))
        self._at = now
        return self._value

    def update(self, being_state: VisionState) -> float:
        """Take the state's surprise in, once for every frame, and return coherence."""
        value, frame = self.value, being_state.vision_core_timestamp
        if frame != self._counted:
            self._counted = frame
            if being_state.vision_prediction_surprise > self.threshold:
                self._value = max(0.0, value - self.penalty)
        return self._value

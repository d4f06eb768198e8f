"""Whether company pays: what an item costs in batches of this size and that, as measured.

A model that keeps every core busy with one item takes ten times as long for ten: a batch of them
only makes the first wait for the last. Then the smaller batch is taken. Where a batch takes no
time to speak of, nothing is weighed: fewer, larger ones cost everything around the model less.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

WORTHWHILE = 0.85
"""A larger batch is taken where an item in it costs less than this share."""
SHORT_S = 0.05
"""Batches that take less are not weighed."""
LONGEST_S = 1.0
"""Nor is a batch taken that is expected to take longer: who is in it would wait too long for it."""
FRESH_S = 30.0
"""What was measured longer ago is measured again."""
MOST_KINDS = 64


@dataclass(slots=True)
class _Cost:
    """Seconds an item, and when that was seen."""

    seconds: float
    seen: float


class Gains:
    """Costs by kind of batch, a few numbers each. Belongs to one event loop."""

    def __init__(self) -> None:
        self._costs: dict[int, dict[int, _Cost]] = {}

    def observe(self, kind: int, count: int, seconds: float) -> None:
        """A batch of ``count`` items took so long."""
        if len(self._costs) >= MOST_KINDS and kind not in self._costs:
            self._costs.clear()
        costs = self._costs.setdefault(kind, {})
        size, each, now = 1 << (count - 1).bit_length(), seconds / count, time.monotonic()
        known = costs.get(size)
        if known is not None and now - known.seen < FRESH_S:
            each = (known.seconds + each) / 2  # one slow batch is no rule
        costs[size] = _Cost(each, now)

    def expected(self, kind: int, count: int) -> float:
        """Seconds that a batch will take, by those of its size or of the nearest; 0: not known."""
        costs = self._costs.get(kind)
        if not costs:
            return 0.0
        size = 1 << (count - 1).bit_length()
        return count * costs[min(costs, key=lambda known: abs(known - size))].seconds

    def limit(self, kind: int, waiting: int) -> int:
        """How many of those who wait to take together; all, where nothing speaks against it."""
        now = time.monotonic()
        costs = {
            size: cost.seconds
            for size, cost in self._costs.get(kind, {}).items()
            if now - cost.seen < FRESH_S
        }
        paying = self._paying(costs, waiting)
        known = [size for size in costs if size <= paying] or list(costs)
        if not known:
            return paying
        return min(paying, max(1, int(LONGEST_S / costs[max(known)])))

    @staticmethod
    def _paying(costs: dict[int, float], waiting: int) -> int:
        """The smallest batch in which an item costs hardly more than in that of all."""
        whole = costs.get(1 << (waiting - 1).bit_length())
        if whole is None or whole * waiting < SHORT_S:
            return waiting
        for size in sorted(costs):
            if size >= waiting:
                break
            if whole > WORTHWHILE * costs[size]:
                return size
        return waiting

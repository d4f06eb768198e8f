"""The play benchmark's own sums, on a visitor whose pictures move as they are told."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from benchmarks.play import HELD, STARTS, speed, turning


class Painted:
    """A room painted all round: an action turns it by so many pixels."""

    def __init__(self, moves: dict[str, int]) -> None:
        rng = np.random.default_rng(0)
        small = rng.integers(0, 256, (8, 32, 3)).astype(np.float64)
        self.room = np.repeat(np.repeat(small, 8, 0), 8, 1).astype(np.uint8)
        self.moves, self.at, self.steps, self.caption = moves, 0, 0, "a room"

    def reset(self, place: int) -> Any:
        self.at = place
        return self.seen()

    def step(self, action: str) -> Any:
        self.at -= self.moves.get(action, 0)
        self.steps += 1
        return self.seen()

    def seen(self) -> Any:
        return np.roll(self.room, -self.at, axis=1)[:, :64]


@pytest.mark.parametrize(
    ("moves", "share"),
    [({"turn_left": 6, "turn_right": -6}, 1.0), ({"turn_left": -6, "turn_right": 6}, 0.0)],
)
def test_it_tells_which_way_a_view_turns(moves: dict[str, int], share: float) -> None:
    for action, way in (("turn_left", 1), ("turn_right", -1)):
        found = turning(Painted(moves), action)  # type: ignore[arg-type]
        assert found["share_right_way"] == share
        assert found["mean_shift"] == pytest.approx(way * (6 if share else -6), abs=1)
        assert found["starts"] == len(found["shifts"]) == STARTS


def test_it_counts_frames() -> None:
    visitor = Painted({})
    found = speed(visitor, ["noop", "turn_left"], 30)  # type: ignore[arg-type]
    assert found["frames"] == 30
    assert visitor.steps == 31  # one to warm up
    assert found["p50_ms"] <= found["p95_ms"]
    assert found["frames_per_s"] > 0
    assert HELD > 1

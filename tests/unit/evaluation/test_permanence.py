"""Objects taken away, told by critics whose figures are known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from iwm.data.branches import BranchSet
from iwm.errors import DataError
from iwm.evaluation.permanence import ARMS, block_mismatch, draw, evaluate, removals
from iwm.evaluation.sequences import Windows

SIZE, STATES = 32, 24


class Difference:
    """Log odds: how much redder a cell was. It knows what this world's objects look like."""

    def parameters(self) -> Any:
        return iter([torch.zeros(1)])

    def vanished(self, before: Tensor, after: Tensor) -> Tensor:
        redness = [f[:, :1].float() - f[:, 1:2].float() for f in (before[:, 1], after)]
        return F.avg_pool2d(redness[0] - redness[1], 4)[:, 0] / 10


class Blind(Difference):
    def vanished(self, before: Tensor, after: Tensor) -> Tensor:
        return torch.zeros(len(before), 8, 8)


def world(has: bool = True, seed: int = 0) -> BranchSet:
    """A red square on grey noise that stays where it is, and the same without it."""
    generator = np.random.default_rng(seed)
    shape = (STATES, SIZE, SIZE, 3)
    ground = np.repeat(generator.integers(80, 120, (*shape[:3], 1), np.uint8), 3, -1)
    place = generator.integers(0, SIZE - 6, (STATES, 2))
    came = ground.copy()
    for state, (row, column) in enumerate(place):
        came[state, row : row + 6, column : column + 6] = (220, 20, 20)
    frames = came[:, None]
    return BranchSet(
        name="squares",
        source="toy",
        game="toy",
        seed=seed,
        vocabulary=("noop", "other"),
        frames=frames,
        actions=np.zeros((STATES, 0), np.int64),
        outcomes=np.stack([came, came], 1),
        valid=np.ones((STATES, 2), bool),
        distinct=np.zeros((STATES, 2, 2), bool),
        episode=np.arange(STATES) // 3,
        step=np.arange(STATES),
        taken=np.zeros(STATES, np.int64),
        position=np.zeros((STATES, 3)),
        removed=ground,
        has_removed=np.full(STATES, has),
        teleported=ground,
        has_teleported=np.zeros(STATES, bool),
    )


def held(seed: int = 1) -> Windows:
    found = world(seed=seed)
    frames = torch.from_numpy(np.repeat(found.frames, 3, 1))
    episode = (np.int64(1) << 32) + np.asarray(found.episode)
    return Windows(
        frames,
        torch.zeros(STATES, 2, dtype=torch.int64),
        episode,
        torch.ones(STATES, 2, dtype=torch.bool),
    )


def test_a_critic_that_sees_it_and_one_that_does_not() -> None:
    found = evaluate(Difference(), {"squares": world()}, held()).metrics
    assert found["removal"]["model"]["mean"] == 1.0
    assert found["removal"]["model"]["n"] == STATES
    assert found["removal_of"]["squares"] == found["removal"]
    assert found["paired"]["model"]["mean"] == 1.0
    assert found["points"]["model"]["mean"] == 1.0
    assert 0.05 < found["points"]["chance"]["mean"] < 0.6
    assert set(found["removal"]) == set(ARMS)
    blind = evaluate(Blind(), {"squares": world()}, held()).metrics
    assert blind["removal"]["model"]["mean"] == blind["paired"]["model"]["mean"] == 0.5


def test_sizes_are_told_apart() -> None:
    found = evaluate(Difference(), {"squares": world()}, held()).metrics["removal_by_size"]
    shares = [found[size]["share_of_pixels"]["mean"] for size in ("small", "middle", "large")]
    assert shares == sorted(shares)
    assert shares[0] == pytest.approx(36 / SIZE**2, rel=0.05)


def test_the_scale_puts_ordinary_play_below_the_threshold() -> None:
    class Noise(Difference):
        def vanished(self, before: Tensor, after: Tensor) -> Tensor:
            return before.float().mean((1, 2, 3, 4)).view(-1, 1, 1).expand(-1, 8, 8) / 100

    outcome = evaluate(Noise(), {"squares": world()}, held())
    assert outcome.calibration["threshold"] == 2.0
    assert outcome.metrics["p95"]["mean"] == pytest.approx(2.0, rel=0.1)
    assert outcome.metrics["ordinary"]["transitions"] == STATES


def test_no_object_is_one_line() -> None:
    with pytest.raises(DataError, match="no counterfactual set has a state"):
        removals({"squares": world(has=False)})


def test_blocks_are_looked_for_nearby() -> None:
    before = torch.full((2, 3, SIZE, SIZE), 100, dtype=torch.uint8)
    before[:, 0, 12:20, 12:20] = 255
    after = before.clone()
    after[0] = torch.roll(before[0], (2, -4), (1, 2))
    after[1] = 100
    moved, gone = block_mismatch(before, after)
    assert moved == pytest.approx(0.0, abs=1e-6)
    assert gone > 0.05


def test_pictures(tmp_path: Path) -> None:
    draw(evaluate(Difference(), {"squares": world()}, held()), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"removal.png", "roc.png"}
    assert all(path.stat().st_size > 5_000 for path in tmp_path.iterdir())

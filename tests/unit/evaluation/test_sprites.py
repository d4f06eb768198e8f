"""Counting and finding sprites, against frames whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from iwm.data.config import ShardConfig
from iwm.errors import DataError
from iwm.evaluation.sprites import Staged, locate, stage, truth_figures
from iwm.gameplay.config import RecordPlan
from iwm.gameplay.sources.procedural import ACTIONS

PRESENT = 3
STEPS = (1, 5, 10)
PLAN = RecordPlan(
    name="sprites", source="procedural", game="sprites", frames=200, frame_skip=1,
    width=64, height=64,
)  # fmt: skip
SHARD = ShardConfig(width=64, height=64, format="jpeg", quality=95)


@pytest.fixture(scope="module")
def staged() -> Staged:
    return stage(PLAN, SHARD, ACTIONS, frames=14, count=10, record_seed=7, seed=0)


def figures(staged: Staged, frames: torch.Tensor) -> dict:  # type: ignore[type-arg]
    return truth_figures(staged, frames, PRESENT, STEPS, resamples=200, seed=0)


def test_staged_play_is_as_asked_and_the_same_again(staged: Staged) -> None:
    assert staged.windows.frames.shape == (10, 14, 64, 64, 3)
    assert staged.windows.actions.shape == (10, 13)
    again = stage(PLAN, SHARD, ACTIONS, frames=14, count=10, record_seed=7, seed=0)
    assert torch.equal(staged.windows.frames, again.windows.frames)
    player = [sprites[0] for sprites in staged.sprites]
    moved = [np.abs(np.diff(sprite.place, axis=0)).max() for sprite in player]
    assert max(moved) == 6  # three pixels a tic at the scale of 64 pixels
    with pytest.raises(DataError, match="no fresh episode lasts 100000 frames"):
        stage(PLAN, SHARD, ACTIONS, frames=100_000, count=1, record_seed=7, seed=0)


def test_sprites_are_found_where_they_are(staged: Staged) -> None:
    found = []
    for window in range(10):
        frames = staged.windows.frames[window]
        for sprite in staged.sprites[window]:
            seen = sprite.seen == 1
            place, sure = locate(frames, staged.backgrounds[window], sprite)
            off = np.linalg.norm(place - sprite.place, axis=1)[seen]
            found.append((off < 0.5) & (sure[seen] > 0.5))
        empty = torch.from_numpy(staged.backgrounds[window])[None]
        _, sure = locate(empty, staged.backgrounds[window], staged.sprites[window][0])
        assert sure[0] < 0.5
    assert np.concatenate(found).mean() > 0.9  # but for those of the background's own colours


def test_true_frames_are_right_and_the_last_frame_is_as_wrong_as_itself(staged: Staged) -> None:
    true = staged.windows.frames[:, PRESENT + 1 :]
    found = figures(staged, true)
    for step in STEPS:
        for what in ("place", "player", "count"):
            arms = found[f"k{step}"][what]
            assert arms["model"] == arms["true_frames"]
            assert arms["model"]["mean"] < 2
    assert found["k5"]["place"]["gain"]["low"] > 3
    assert found["k10"]["place"]["copy_last"]["mean"] > found["k1"]["place"]["copy_last"]["mean"]
    copied = staged.windows.frames[:, PRESENT : PRESENT + 1].expand_as(true)
    still = figures(staged, copied)
    for what in ("place", "player"):
        arms = still["k5"][what]
        assert arms["model"]["mean"] == pytest.approx(arms["copy_last"]["mean"], abs=1.0)


def test_a_dream_without_sprites_is_counted_as_one(staged: Staged) -> None:
    grounds = torch.from_numpy(np.stack(staged.backgrounds))[:, None]
    empty = grounds.expand(-1, 10, -1, -1, -1)
    found = figures(staged, empty)["k1"]["count"]
    assert found["model"]["mean"] > 0.8
    assert found["true_frames"]["mean"] < 0.5

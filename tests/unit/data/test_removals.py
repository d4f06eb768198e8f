"""Objects that engines take away, played and kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from iwm.data.branches import write_branches
from iwm.data.config import ShardConfig
from iwm.data.removals import REMOVALS_FILE, RemovalSet, load_removals, write_removals
from iwm.errors import ConfigError, DataError
from iwm.files import read_json, write_json
from iwm.gameplay.config import (
    BranchConfig,
    BranchPlan,
    RecordConfig,
    RecordPlan,
    RemovalConfig,
    RemovalPlan,
)
from iwm.gameplay.removals import play_removals

PLAN = RecordPlan(
    name="sprites",
    source="procedural",
    game="sprites",
    frames=50,
    frame_skip=1,
    width=96,
    height=64,
    max_episode_steps=60,
)
DOOM = RecordPlan(
    name="medikits", source="vizdoom", game="health_gathering", frames=100, max_episode_steps=60
)
CONFIG = RemovalConfig(plans=(RemovalPlan(name="sprites", removals=16),), workers=1)
SHARD = ShardConfig(width=48, height=32)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "removals"
    write_removals(folder, RecordConfig(plans=(PLAN,)), CONFIG, SHARD)
    return folder


def test_a_set_on_disk(made: Path) -> None:
    (found,) = load_removals(made)
    assert (found.name, len(found)) == ("sprites", 16)
    assert found.frames.shape == (16, 3, 32, 48, 3)
    assert found.gone.shape == (16, 32, 48)
    assert np.bincount(found.episode).max() <= 3
    for frames, gone in zip(found.frames, found.gone, strict=True):
        assert gone.max() > 200
        assert (gone > 127).mean() < 0.5
        # What was there is another colour now, but for what lies on top of it.
        changed = np.abs(frames[1].astype(int) - frames[2]).max(-1) > 16
        assert changed[gone > 127].mean() > 0.3
    with pytest.raises(ValueError, match="read-only"):
        found.gone[0] = 1
    assert load_removals(made, ["other"]) == []
    assert load_removals(made / "nowhere") == []


def test_the_same_settings_give_the_same_bytes(made: Path, tmp_path: Path) -> None:
    (found,) = load_removals(made)
    (again,) = write_removals(tmp_path / "x", RecordConfig(plans=(PLAN,)), CONFIG, SHARD)
    assert again.digest() == found.digest()
    for file in (made / "sprites").iterdir():
        assert (tmp_path / "x/sprites" / file.name).read_bytes() == file.read_bytes()
    other = RemovalConfig(plans=CONFIG.plans, seed=8, workers=1)
    (fresh,) = write_removals(tmp_path / "y", RecordConfig(plans=(PLAN,)), other, SHARD)
    assert fresh.digest() != found.digest()


def test_its_episodes_are_none_of_the_counterfactual_sets(made: Path, tmp_path: Path) -> None:
    branch = BranchConfig(plans=(BranchPlan(name="sprites", states=40),), workers=1)
    sets = write_branches(tmp_path / "b", RecordConfig(plans=(PLAN,)), branch, SHARD)
    (found,) = load_removals(made)
    judged = {frame.tobytes() for states in sets["sprites"].frames for frame in states}
    assert judged.isdisjoint(frame.tobytes() for run in found.frames for frame in run)


def test_doom_plays_on_as_if_nothing_had_been() -> None:
    config = RemovalConfig(plans=(), every=3, removals_per_episode=3)
    found = list(play_removals(DOOM, 6, config, record_seed=7))
    assert len(found) == 6
    assert {removal.episode for removal in found} != {0}
    for removal in found:
        assert removal.gone.shape == removal.frames[1].shape[:2]
        assert 0.005 < removal.gone.mean() < 0.5
    with pytest.raises(DataError, match="100 episodes in a row showed no object"):
        empty = RecordPlan(
            name="x", source="vizdoom", game="my_way_home", frames=9, max_episode_steps=4
        )
        list(play_removals(empty, 1, config, record_seed=7))


def test_refusals(made: Path, tmp_path: Path) -> None:
    record = RecordConfig(plans=(PLAN,))
    wrong = RemovalConfig(plans=(RemovalPlan(name="doom", removals=1),))
    with pytest.raises(ConfigError, match=r"removals.plans: no plan 'doom'; record.plans has spr"):
        write_removals(tmp_path / "x", record, wrong, SHARD)
    with pytest.raises(ConfigError, match="named twice"):
        write_removals(tmp_path / "x", record, RemovalConfig(plans=CONFIG.plans * 2), SHARD)
    assert write_removals(tmp_path / "x", record, RemovalConfig(), SHARD) == []
    (found,) = load_removals(made)
    broken = tmp_path / "broken"
    found.save(broken)
    np.save(broken / "gone.npy", np.zeros((3, 32, 48), np.uint8))
    with pytest.raises(DataError, match=r"gone\.npy: holds 3 states, removals\.json says 16"):
        RemovalSet.load(broken)
    write_json(broken / REMOVALS_FILE, {**read_json(broken / REMOVALS_FILE), "version": 9})
    with pytest.raises(DataError, match="version 9 is newer"):
        RemovalSet.load(broken)

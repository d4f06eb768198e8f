"""Counterfactual sets on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from iwm.data.branches import (
    BRANCHES_FILE,
    BranchSet,
    differ,
    load_branches,
    make_branch_set,
    visible_share,
    write_branches,
)
from iwm.data.config import ShardConfig
from iwm.errors import ConfigError, DataError
from iwm.files import read_json, write_json
from iwm.gameplay.config import BranchConfig, BranchPlan, RecordConfig, RecordPlan

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
CONFIG = BranchConfig(plans=(BranchPlan(name="sprites", states=14),), history=3, workers=1)
SHARD = ShardConfig(width=48, height=32)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "branches"
    write_branches(folder, RecordConfig(plans=(PLAN,)), CONFIG, SHARD)
    return folder


def test_a_set_on_disk(made: Path) -> None:
    found = load_branches(made)["sprites"]
    assert (len(found), found.history, found.vocabulary[1]) == (14, 3, "up")
    assert found.frames.shape == (14, 3, 32, 48, 3)
    assert found.outcomes.shape == (14, 5, 32, 48, 3)
    assert found.actions.shape == (14, 2)
    assert (np.bincount(found.episode) >= 1).all()
    assert np.bincount(found.episode).max() == 6
    assert found.has_removed.any()
    assert found.has_teleported.any()
    assert found.valid.all()
    assert np.isfinite(found.position).all()
    assert not np.diagonal(found.distinct, axis1=1, axis2=2).any()
    assert (found.distinct == found.distinct.transpose(0, 2, 1)).all()
    assert 0 <= found.alike().mean() < 1
    for state in range(14):
        truth = found.outcomes[state, found.taken[state]]
        for frame, there in (
            (found.removed, found.has_removed),
            (found.teleported, found.has_teleported),
        ):
            assert there[state] == (visible_share(frame[state], truth) >= 0.01) or not there[state]
        assert found.distinct[state, 0, 1] == differ(*found.outcomes[state, :2])
    with pytest.raises(ValueError, match="read-only"):
        found.taken[0] = 1


def test_the_same_settings_give_the_same_bytes(made: Path, tmp_path: Path) -> None:
    make_branch_set(PLAN, 14, CONFIG, 7, SHARD).save(tmp_path / "sprites")
    files = sorted(file.name for file in (tmp_path / "sprites").iterdir())
    assert files == sorted(file.name for file in (made / "sprites").iterdir())
    for name in files:
        assert (tmp_path / "sprites" / name).read_bytes() == (made / "sprites" / name).read_bytes()


def test_refusals(made: Path, tmp_path: Path) -> None:
    record = RecordConfig(plans=(PLAN,))
    wrong = BranchConfig(plans=(BranchPlan(name="doom", states=1),))
    with pytest.raises(ConfigError, match=r"branch.plans: no plan 'doom'; record.plans has spr"):
        write_branches(tmp_path / "x", record, wrong, SHARD)
    twice = BranchConfig(plans=CONFIG.plans * 2)
    with pytest.raises(ConfigError, match="named twice"):
        write_branches(tmp_path / "x", record, twice, SHARD)
    with pytest.raises(DataError, match="no counterfactual sets there"):
        load_branches(tmp_path)
    found = BranchSet.load(made / "sprites")
    broken = tmp_path / "broken"
    found.save(broken)
    (broken / "taken.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(DataError, match=r"taken\.npy: "):
        BranchSet.load(broken)
    found.save(broken)
    np.save(broken / "taken.npy", np.zeros(3, np.int64))
    with pytest.raises(DataError, match=r"taken\.npy: holds 3 states, branches\.json says 14"):
        BranchSet.load(broken)
    meta = read_json(broken / BRANCHES_FILE)
    write_json(broken / BRANCHES_FILE, {**meta, "version": 9})
    with pytest.raises(DataError, match="version 9 is newer"):
        BranchSet.load(broken)

"""Trajectories: the particle world, sprite truth, the set on disk, the loader."""

from __future__ import annotations

import json
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from iwm.data import particles
from iwm.data.config import ParticlesConfig
from iwm.data.sprites import STATE_NAMES, VELOCITIES, read_truth, sprite_state
from iwm.data.trajectories import (
    INFO_FILE,
    VALUES_FILE,
    Episode,
    TrajectoryLoader,
    TrajectoryStore,
    write_trajectories,
)
from iwm.errors import ConfigError, DataError
from iwm.gameplay.config import RecordConfig, RecordPlan, SplitConfig
from iwm.gameplay.record import record

SPLIT = SplitConfig(val=0.2, test=0.2)


def episode(key: str, steps: int = 9, split: str = "") -> Episode:
    rng = np.random.default_rng(zlib.crc32(key.encode()))
    return Episode(
        key,
        rng.normal(size=(steps + 1, 3)).astype(np.float32),
        rng.normal(size=(steps, 2)).astype(np.float32),
        rng.normal(size=steps).astype(np.float32),
        split,
    )


def make(folder: Path, count: int = 40, **facts: Any) -> TrajectoryStore:
    write_trajectories(folder, [episode(f"e/{n}") for n in range(count)], SPLIT, "test", **facts)
    return TrajectoryStore(folder)


# -- particles -----------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_episodes() -> None:
    one, other, third = (
        particles.simulate(ParticlesConfig(episodes=4, steps=20, seed=seed)) for seed in (1, 1, 2)
    )
    assert all(
        np.array_equal(a.states, b.states) and np.array_equal(a.actions, b.actions)
        for a, b in zip(one, other, strict=True)
    )
    assert not np.array_equal(one[0].states, third[0].states)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**31), st.integers(2, 6))
def test_bodies_stay_near_the_box_and_the_reward_is_the_distance(seed: int, bodies: int) -> None:
    made = particles.simulate(ParticlesConfig(episodes=5, steps=150, bodies=bodies, seed=seed))
    for one in made:
        place = one.states.reshape(151, bodies, 4)[..., :2]
        assert np.abs(place).max() < 1.5
        away = np.linalg.norm(place[1:, 1] - place[1:, 0], axis=-1)
        np.testing.assert_allclose(one.rewards, -away, atol=1e-5)
        assert np.abs(one.actions).max() <= 1
    names = particles.state_names(bodies)
    for place, velocity in enumerate(particles.velocities(bodies)):
        assert velocity < 0 or names[velocity] == names[place].replace(".", ".v")


def test_a_body_glides_bounces_and_keeps_its_energy() -> None:
    rng = np.random.default_rng(0)
    world = particles.Particles.start(1, 2, rng)
    world.place[:], world.speed[:] = 0.0, 0.0
    world.place[0, 0] = 0.9, 0.9
    world.place[0, 1], world.speed[0, 1] = (-0.5, -0.5), (-0.5, 0.0)
    speeds = []
    for _ in range(120):
        world.step(np.zeros((1, 2)))
        speeds.append(world.speed[0, 1, 0])
    assert min(speeds) == pytest.approx(-0.5, abs=0.05)
    assert max(speeds) == pytest.approx(0.5, abs=0.1)


def test_the_driven_body_obeys_and_slows_down() -> None:
    world = particles.Particles.start(1, 2, np.random.default_rng(0))
    world.place[0] = (0.0, 0.0), (-0.6, -0.6)
    for _ in range(3):
        world.step(np.array([[1.0, 0.0]]))
    fast = world.speed[0, 0, 0]
    assert fast > 0.2
    world.step(np.zeros((1, 2)))
    assert 0 < world.speed[0, 0, 0] < fast


# -- sprites -------------------------------------------------------------------------------


def test_a_sprite_state_names_its_numbers() -> None:
    player = {"id": 0, "x": 1.0, "y": 2.0, "vx": 3.0, "vy": 4.0}
    third = {"id": 3, "x": 5.0, "y": 6.0, "vx": 7.0, "vy": 8.0}
    state = dict(zip(STATE_NAMES, sprite_state([player, third]).tolist(), strict=True))
    assert [state[f"player.{part}"] for part in ("x", "y", "vx", "vy")] == [1, 2, 3, 4]
    assert [state[f"sprite3.{part}"] for part in ("there", "x", "y", "vx", "vy")] == [1, 5, 6, 7, 8]
    assert state["sprite1.there"] == state["sprite2.x"] == 0
    assert STATE_NAMES[VELOCITIES[STATE_NAMES.index("sprite3.y")]] == "sprite3.vy"


def test_recordings_become_trajectories_with_their_own_split(tmp_path: Path) -> None:
    plan = RecordPlan(
        name="sprites", source="procedural", game="sprites", frames=200, frame_skip=1,
        width=32, height=32, max_episode_steps=20,
    )  # fmt: skip
    record(tmp_path, RecordConfig(plans=(plan,), workers=1, seed=3))
    episodes, facts = read_truth(tmp_path, None, SPLIT)
    assert {item.split for item in episodes} <= {"train", "val", "test"}
    assert facts["vocabulary"] == ("noop", "up", "down", "left", "right")
    for item in episodes:
        assert np.array_equal(item.actions.sum(1), np.ones(len(item.actions)))
        player = item.states[:, :4]
        # Its velocity is that of the step that led here.
        np.testing.assert_allclose(
            np.clip(player[:-1, :2] + player[1:, 2:], 2.5, 29.5), player[1:, :2], atol=0.01
        )
    write_trajectories(tmp_path / "set", episodes, SPLIT, "truth", **facts)
    assert TrajectoryStore(tmp_path / "set").info.state_dim == len(STATE_NAMES)
    with pytest.raises(DataError, match=r"no recording has a truth\.parquet"):
        read_truth(tmp_path / "set", None, SPLIT)


# -- the set -------------------------------------------------------------------------------


def test_a_set_reads_back_as_it_was_written(tmp_path: Path) -> None:
    store = make(tmp_path / "set", state_names=("x", "y", "z"), velocities=(-1, -1, -1))
    assert store.info.state_names == ("x", "y", "z")
    for number, item in enumerate(store.info.episodes):
        rows = slice(item.first, item.first + item.states)
        wanted = episode(f"e/{number}")
        assert np.array_equal(store.states[rows].numpy(), wanted.states)
        assert np.array_equal(store.actions[rows][:-1].numpy(), wanted.actions)
        assert np.array_equal(store.rewards[rows][:-1].numpy(), wanted.rewards)
    assert {item.split for item in store.info.episodes} == {"train", "val", "test"}


def test_adding_episodes_moves_none_to_another_split(tmp_path: Path) -> None:
    few, more = make(tmp_path / "few", 20), make(tmp_path / "more", 40)
    sides = {item.key: item.split for item in more.info.episodes}
    assert all(sides[item.key] == item.split for item in few.info.episodes)
    assert few.info.revision != more.info.revision
    assert few.info.revision == make(tmp_path / "again", 20).info.revision


def test_an_episodes_own_split_goes_before(tmp_path: Path) -> None:
    write_trajectories(tmp_path / "set", [episode("a", split="val")], SPLIT, "test")
    store = TrajectoryStore(tmp_path / "set")
    assert store.episodes("val")[0].key == "a"
    with pytest.raises(DataError, match="the split train has no episode"):
        store.statistics()


def test_statistics_are_of_the_training_split(tmp_path: Path) -> None:
    store = make(tmp_path / "set")
    spans = [slice(i.first, i.first + i.states) for i in store.episodes("train")]
    seen = torch.cat([store.states[span] for span in spans])
    mean, std, reward, _ = store.statistics()
    torch.testing.assert_close(mean, seen.mean(0))
    torch.testing.assert_close(std, seen.std(0, correction=0))
    rewards = torch.cat([store.rewards[span][:-1] for span in spans])
    assert reward == pytest.approx(rewards.mean().item(), abs=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 10), st.integers(1, 4))
def test_windows_stay_in_one_episode(window: int, stride: int) -> None:
    store = STORE
    rows, labels = store.starts("train", window, stride)
    for row, label in zip(rows.tolist(), labels.tolist(), strict=True):
        item = store.info.episodes[label]
        assert item.split == "train"
        assert item.first <= row <= item.first + item.states - window


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda e: replace(e, actions=e.actions[:-1]), "do not make T"),
        (lambda e: replace(e, rewards=e.rewards[:, None]), "do not make T"),
        (lambda e: replace(e, states=e.states[:, :2]), "do not make T"),
        (lambda e: replace(e, states=np.full_like(e.states, np.nan)), "not finite"),
        (lambda e: replace(e, actions=np.full_like(e.actions, np.inf)), "not finite"),
    ],
)
def test_a_bad_episode_is_refused_by_name(tmp_path: Path, spoil: Any, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        write_trajectories(tmp_path / "set", [episode("a"), spoil(episode("b"))], SPLIT, "test")
    assert str(caught.value).startswith("b: ")
    assert not (tmp_path / "set").exists()


def test_no_episodes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no episodes"):
        write_trajectories(tmp_path / "set", [], SPLIT, "test")


def test_a_damaged_set_is_refused(tmp_path: Path) -> None:
    make(tmp_path / "set", 4)
    info, values = tmp_path / "set" / INFO_FILE, tmp_path / "set" / VALUES_FILE
    plain = json.loads(info.read_text())
    for change, message in (
        ({"version": 99}, "newer than this software"),
        ({"version": None}, "has no version"),
        ({"episodes": plain["episodes"][:-1]}, "states has shape"),
        ({"state_dim": "many"}, "state_dim"),
    ):
        info.write_text(json.dumps({**plain, **change}))
        with pytest.raises(DataError, match=message):
            TrajectoryStore(tmp_path / "set")
    info.write_text("{")
    with pytest.raises(DataError, match="not JSON"):
        TrajectoryStore(tmp_path / "set")
    info.write_text(json.dumps(plain))
    values.write_bytes(values.read_bytes()[:-8])
    with pytest.raises(DataError, match="cannot be read"):
        TrajectoryStore(tmp_path / "set")
    values.unlink()
    with pytest.raises(DataError, match="not found"):
        TrajectoryStore(tmp_path / "set")
    with pytest.raises(DataError, match="run `iwm trajectories` first"):
        TrajectoryStore(tmp_path / "nothing")


# -- the loader ----------------------------------------------------------------------------


def test_ranks_share_each_step_and_an_epoch_can_begin_anywhere() -> None:
    whole = TrajectoryLoader(STORE, "train", 8, 5, window=4, stride=2)
    parts = [
        TrajectoryLoader(STORE, "train", 8, 5, window=4, stride=2, rank=rank, world=3)
        for rank in range(3)
    ]
    for step, batch in enumerate(whole.epoch(2)):
        shares = [next(part.epoch(2, step)) for part in parts]
        assert torch.equal(torch.cat([share.states for share in shares]), batch.states)
        assert [key for share in shares for key in share.keys] == batch.keys
        assert batch.states.shape == (8, 4, 3)
        assert batch.actions.shape == (8, 4, 2)
        assert batch.to("cpu").rewards.shape == (8, 4)
    orders = [next(whole.epoch(epoch)).keys for epoch in (0, 1, 0)]
    assert orders[0] == orders[2] != orders[1]


def test_a_loader_that_cannot_work_says_why() -> None:
    with pytest.raises(ConfigError, match="window 1"):
        TrajectoryLoader(STORE, "train", 8, window=1)
    with pytest.raises(DataError, match="has no episode of 99 states"):
        TrajectoryLoader(STORE, "train", 8, window=99)
    with pytest.raises(DataError, match="too few for a batch"):
        TrajectoryLoader(STORE, "train", 4096, window=2)


@pytest.fixture(scope="module", autouse=True)
def _store(tmp_path_factory: pytest.TempPathFactory) -> None:
    global STORE
    STORE = make(tmp_path_factory.mktemp("trajectories") / "set")


STORE: TrajectoryStore

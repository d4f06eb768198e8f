"""The sprite world: what is drawn is what the truth says."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iwm.errors import ConfigError
from iwm.gameplay.config import RecordPlan
from iwm.gameplay.sources.procedural import ACTIONS, SpriteWorld

PLAN = RecordPlan(
    name="s", source="procedural", game="sprites", frames=9, frame_skip=1, width=64, height=64
)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**31 - 1),
    width=st.integers(32, 130),
    height=st.integers(32, 130),
    skip=st.integers(1, 4),
    actions=st.lists(st.integers(0, len(ACTIONS) - 1), max_size=30),
)
def test_truth_holds(seed: int, width: int, height: int, skip: int, actions: list[int]) -> None:
    plan = dataclasses.replace(PLAN, width=width, height=height, frame_skip=skip)
    worlds = [SpriteWorld(plan) for _ in range(2)]
    frames = [world.reset(seed) for world in worlds]
    assert np.array_equal(*frames)
    count = worlds[0].truth()["count"]
    for action in actions:
        outcomes = [world.step(action) for world in worlds]
        assert np.array_equal(outcomes[0].frame, outcomes[1].frame)  # type: ignore[arg-type]
        frame, truth = outcomes[0].frame, worlds[0].truth()
        assert frame is not None
        assert (frame.shape, frame.dtype) == ((height, width, 3), np.uint8)
        assert truth["count"] == len(truth["sprites"]) - 1 == count - outcomes[0].reward
        count = truth["count"]
        assert outcomes[0].done == (count == 0)
        for sprite in truth["sprites"]:
            half = sprite["size"] / 2
            assert half <= sprite["x"] <= width - half
            assert half <= sprite["y"] <= height - half
        player = truth["sprites"][0]
        assert player["visible"] == player["size"] ** 2
        corner = frame[int(player["y"] - player["size"] / 2), int(player["x"] - player["size"] / 2)]
        assert corner.tolist() == [255, 255, 255]


def test_the_player_goes_where_it_is_told() -> None:
    world = SpriteWorld(PLAN)
    for action, (right, down) in {"up": (0, -1), "right": (1, 0), "noop": (0, 0)}.items():
        world.reset(5)
        before = world.truth()["sprites"][0]
        world.step(ACTIONS.index(action))
        after = world.truth()["sprites"][0]
        speed = 6  # 3 pixels a tic for every 32 pixels of the frame's side
        assert (after["x"] - before["x"], after["y"] - before["y"]) == (speed * right, speed * down)


def test_refusals() -> None:
    with pytest.raises(ConfigError, match="no world 'pong'"):
        SpriteWorld(dataclasses.replace(PLAN, game="pong"))
    with pytest.raises(ConfigError, match="32x32"):
        SpriteWorld(dataclasses.replace(PLAN, width=16))

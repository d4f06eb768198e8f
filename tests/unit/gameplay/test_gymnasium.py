"""Gymnasium: ALE, MiniGrid and what cannot be recorded."""

from __future__ import annotations

from contextlib import closing

import numpy as np
import pytest

from iwm.errors import ConfigError
from iwm.gameplay.config import RecordPlan
from iwm.gameplay.sources.gymnasium import GymnasiumSource


def plan(game: str, **more: int) -> RecordPlan:
    return RecordPlan(name="g", source="gymnasium", game=game, frames=9, **more)  # type: ignore


@pytest.mark.parametrize(
    ("game", "skip", "size", "fps", "actions"),
    [
        ("ALE/Breakout-v5", 4, (160, 210), 15, ("noop", "fire", "right", "left")),
        (
            "MiniGrid-Empty-5x5-v0",
            1,
            (80, 80),
            10,
            ("left", "right", "forward", "pickup", "drop", "toggle", "done"),
        ),
    ],
)
def test_same_seed_same_frames(
    game: str, skip: int, size: tuple[int, int], fps: float, actions: tuple[str, ...]
) -> None:
    played = []
    for _ in range(2):
        with closing(
            GymnasiumSource(plan(game, frame_skip=skip, width=size[0], height=size[1]))
        ) as source:
            assert source.actions == actions
            assert source.fps == fps
            frames = [source.reset(3)]
            frames += [source.step(step % len(actions)).frame for step in range(4)]  # type: ignore
            played.append(np.stack(frames))
    assert played[0].shape == (5, size[1], size[0], 3)
    assert played[0].dtype == np.uint8
    assert np.array_equal(*played)
    assert not np.array_equal(played[0][0], played[0][-1])


def test_refusals() -> None:
    with pytest.raises(ConfigError, match="cannot make 'ALE/NoSuchGame-v5'"):
        GymnasiumSource(plan("ALE/NoSuchGame-v5"))
    with pytest.raises(ConfigError, match="not discrete"):
        GymnasiumSource(plan("Pendulum-v1"))


def test_some_of_the_actions_in_an_order_of_ones_own() -> None:
    size = {"width": 80, "height": 80, "frame_skip": 1}
    every = GymnasiumSource(plan("MiniGrid-Empty-5x5-v0", **size))
    some = GymnasiumSource(
        plan("MiniGrid-Empty-5x5-v0", **size, actions=("forward", "right"))  # type: ignore
    )
    with closing(every), closing(some):
        assert some.actions == ("forward", "right")
        assert np.array_equal(every.reset(3), some.reset(3))
        for one, other in ((2, 0), (1, 1), (2, 0)):
            frames = every.step(one).frame, some.step(other).frame
            assert np.array_equal(*frames)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"g.actions: MiniGrid.* no action 'fly'; it has left,"):
        GymnasiumSource(plan("MiniGrid-Empty-5x5-v0", actions=("fly",)))  # type: ignore
    with pytest.raises(ConfigError, match="one is named twice"):
        GymnasiumSource(plan("MiniGrid-Empty-5x5-v0", actions=("left", "left")))  # type: ignore
    with pytest.raises(ConfigError, match=r"g.actions: only gymnasium's can be chosen"):
        RecordPlan(name="g", source="procedural", game="sprites", frames=9, actions=("up",))

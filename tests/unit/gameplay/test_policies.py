"""Policies: seeded, held, scripted; keys to actions."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from iwm.errors import ConfigError
from iwm.gameplay.config import RecordPlan
from iwm.gameplay.policies import Keyboard, RandomHold, Scripted, automatic_policy, bindings

FRAME = np.zeros((2, 2, 3), np.uint8)


def run(policy: RandomHold | Scripted, seed: int, steps: int) -> list[int]:
    policy.reset(seed)
    return [policy.choose(FRAME) for _ in range(steps)]


@given(
    seed=st.integers(0, 2**31 - 1),
    actions=st.integers(2, 9),
    low=st.integers(1, 4),
    more=st.integers(0, 4),
)
def test_random_hold(seed: int, actions: int, low: int, more: int) -> None:
    chosen = run(RandomHold(actions, low, low + more), seed, 100)
    assert chosen == run(RandomHold(actions, low, low + more), seed, 100)
    assert set(chosen) <= set(range(actions))
    runs = [len(list(group)) for _, group in itertools.groupby(chosen)]
    assert all(length >= low for length in runs[:-1])


def test_random_is_uniform() -> None:
    counts = np.bincount(run(RandomHold(4, 1, 1), 3, 4000))
    assert (abs(counts - 1000) < 150).all()


def test_script_repeats() -> None:
    policy = Scripted(("noop", "left", "right"), ("left", "left", "noop"))
    assert run(policy, 0, 7) == [1, 1, 0, 1, 1, 0, 1]
    assert run(policy, 1, 2) == [1, 1]


def test_unfit_settings() -> None:
    with pytest.raises(ConfigError, match="'jump'; the game has noop, left"):
        Scripted(("noop", "left"), ("jump",))
    with pytest.raises(ConfigError, match="no actions given"):
        Scripted(("noop",), ())
    with pytest.raises(ConfigError, match="hold_max 1 is below hold_min 2"):
        RandomHold(3, 2, 1)


def test_a_plan_names_its_policy() -> None:
    def plan(**more: object) -> RecordPlan:
        values = {"name": "x", "source": "procedural", "game": "sprites", "frames": 1}
        return RecordPlan(**(values | more))  # type: ignore[arg-type]

    assert isinstance(automatic_policy(plan(), ("a", "b")), RandomHold)
    assert isinstance(automatic_policy(plan(policy="scripted", script=("a",)), ("a",)), Scripted)


def test_keys_mean_what_the_game_has() -> None:
    doom = bindings(("noop", "move_forward", "turn_left", "attack"))
    assert doom == {"0": 0, "1": 1, "2": 2, "3": 3, "up": 1, "left": 2, "space": 3}
    assert bindings(("left", "right", "forward", "toggle"))["up"] == 2


def test_keyboard_without_a_display(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DISPLAY", raising=False)
    with pytest.raises(ConfigError, match="needs a display"), Keyboard(("noop",), 10):
        pass

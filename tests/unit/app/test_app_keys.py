"""Keys: the usual ones for the usual actions, one for every action, none twice."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from iwm.app.keys import DIGITS, bindings, label
from iwm.serving.actions import ALIASES

WORDS = [*ALIASES, *(name for names in ALIASES.values() for name in names), "use", "jump"]


def test_a_shooter_and_an_arcade_game() -> None:
    doom = bindings(("noop", "move_forward", "turn_left", "turn_right", "attack"), "noop")
    assert doom == {
        "noop": [],
        "move_forward": ["ArrowUp", "KeyW"],
        "turn_left": ["ArrowLeft", "KeyA"],
        "turn_right": ["ArrowRight", "KeyD"],
        "attack": ["Space"],
    }
    strafing = bindings(("move_left", "move_right", "turn_left", "turn_right"))
    assert strafing["move_left"] == ["KeyQ"]
    assert strafing["turn_left"] == ["ArrowLeft", "KeyA"]
    arcade = bindings(("noop", "fire", "up", "right", "upright"), "noop")
    assert arcade["up"] == ["ArrowUp", "KeyW"]
    assert arcade["fire"] == ["Space"]
    assert arcade["upright"] == ["Digit1"]
    assert bindings(("move_left", "move_right"))["move_left"] == ["ArrowLeft", "KeyA"]


@given(st.lists(st.sampled_from(WORDS) | st.text(min_size=1), unique=True, max_size=30))
def test_every_action_is_within_reach_and_no_key_means_two(names: list[str]) -> None:
    idle = "wait" if "wait" in names else None
    found = bindings(names, idle)
    assert list(found) == names
    keys = [key for keys in found.values() for key in keys]
    assert len(keys) == len(set(keys))
    without = [name for name, keys in found.items() if not keys and name != idle]
    assert not without or set(DIGITS) <= set(keys)
    assert all(label(key) for key in keys)

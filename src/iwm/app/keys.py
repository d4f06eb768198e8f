"""Which keys mean which action: arrows, WASD and space, in a game's own vocabulary."""

from __future__ import annotations

from collections.abc import Sequence

from iwm.serving.actions import ALIASES

# Keys by the DOM's `code`, and what they do in most games; the first name a vocabulary has.
_KEYS: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (("ArrowUp", "KeyW"), ("move_forward", *ALIASES["move_forward"])),
    (("ArrowDown", "KeyS"), ("move_backward", *ALIASES["move_backward"])),
    (("ArrowLeft", "KeyA"), ("turn_left", *ALIASES["turn_left"])),
    (("ArrowRight", "KeyD"), ("turn_right", *ALIASES["turn_right"])),
    (("Space",), ("attack", *ALIASES["attack"], "jump", "speed", "use", "toggle")),
    (("KeyQ",), ("move_left",)),
    (("KeyE",), ("move_right",)),
)
DIGITS = tuple(f"Digit{number}" for number in range(1, 10))


def bindings(vocabulary: Sequence[str], idle: str | None = None) -> dict[str, list[str]]:
    """Action -> the keys that mean it, as the DOM's ``code``.

    Args:
        vocabulary: the names a model knows.
        idle: the action of one who presses nothing; it needs no key.

    Returns:
        Every action in the vocabulary's order; those that no usual key means get 1 to 9, and a
        vocabulary longer than that leaves the rest to the buttons.
    """
    found: dict[str, list[str]] = {name: [] for name in vocabulary}
    for keys, names in _KEYS:
        free = (name for name in names if name in found and not found[name] and name != idle)
        if (name := next(free, None)) is not None:
            found[name] += keys
    digits = iter(DIGITS)
    for name, keys_of in found.items():
        if not keys_of and name != idle and (digit := next(digits, None)) is not None:
            keys_of.append(digit)
    return found


_LABELS = {
    "ArrowUp": "\N{UPWARDS ARROW}",
    "ArrowDown": "\N{DOWNWARDS ARROW}",
    "ArrowLeft": "\N{LEFTWARDS ARROW}",
    "ArrowRight": "\N{RIGHTWARDS ARROW}",
    "Space": "space",
}


def label(code: str) -> str:
    """A key as a person reads it."""
    return _LABELS.get(code, code.removeprefix("Key").removeprefix("Digit"))

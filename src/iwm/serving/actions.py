"""Actions by name: the words that agents commonly use, in a game's own vocabulary."""

from __future__ import annotations

from collections.abc import Sequence

from iwm.errors import DataError

ALIASES: dict[str, tuple[str, ...]] = {
    "move_forward": ("forward", "up"),
    "move_backward": ("backward", "down"),
    "turn_left": ("left", "move_left"),
    "turn_right": ("right", "move_right"),
    "attack": ("fire",),
    "wait": ("noop", "done"),
}
"""Common name -> what a vocabulary may call it; the first that it has."""


def position(name: str, vocabulary: Sequence[str]) -> int:
    """Where an action stands in a vocabulary.

    Args:
        name: one of the vocabulary's own names, which come first, or one of :data:`ALIASES`.
        vocabulary: the names a model knows.

    Raises:
        DataError: no such action; the line lists the vocabulary.
    """
    for candidate in (name, *ALIASES.get(name, ())):
        if candidate in vocabulary:
            return vocabulary.index(candidate)
    raise DataError(f"expected one of {', '.join(vocabulary)}, given {name[:40]!r}")

"""Games that can be played here, behind one small seam.

A source turns (seed, actions) into frames and nothing else: the same seed and the
same actions give the same frames, in any process. A new source is one module with a
class of :class:`Source`'s shape and one line in :func:`open_source`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from iwm.gameplay.config import RecordPlan

Frame = npt.NDArray[np.uint8]
"""RGB ``[height, width, 3]``."""
Mask = npt.NDArray[np.bool_]
"""Some pixels of a frame, [H, W]."""


@dataclass(frozen=True)
class Outcome:
    """What an action led to."""

    frame: Frame | None
    """``None`` where the game shows nothing after its end (ViZDoom)."""
    reward: float
    done: bool
    """The game ended: won, lost, dead."""
    truncated: bool = False
    """The episode was cut by the game's own time limit, which is not an end of the game."""


class Source(Protocol):
    """One running game."""

    actions: tuple[str, ...]
    """The vocabulary: action id -> name."""
    fps: float
    """Recorded frames per second of the game's own time (engine rate / frame skip)."""
    licence: str
    """Under which terms its pictures may be used."""
    software: Mapping[str, str]
    """Package -> version; decides the bytes together with the seed."""
    extra: Mapping[str, Any]
    """More for ``recording.json``."""
    truth_schema: pa.Schema | None
    """Columns of :meth:`truth`, if the source knows its world exactly."""

    def reset(self, seed: int) -> Frame:
        """Begin an episode (``0 <= seed < 2**31``) and return its first frame."""
        ...

    def step(self, action: int) -> Outcome:
        """Hold an action for ``frame_skip`` tics."""
        ...

    def truth(self) -> dict[str, Any] | None:
        """The state behind the frame last returned, if the source knows it."""
        ...

    def close(self) -> None:
        """End the game and free what it holds."""
        ...


Position = tuple[float, float, float]
"""Where the player is: x, y, and the angle it faces in degrees; units are the game's own."""


class Branching(Source, Protocol):
    """A game that can go back: what counterfactual sets and planning oracles are made with.

    A restored game plays on as it would have from there: same state, same randomness, same
    rewards, same frames byte for byte (in ViZDoom but for puffs and flashes of shots, now and
    then).
    """

    def save(self) -> Any:
        """A handle of the present state; opaque, and good for this object only."""
        ...

    def restore(self, handle: Any) -> None:
        """Return to a saved state, any number of times."""
        ...

    def frame(self) -> Frame:
        """The frame last shown; after :meth:`restore`, that of the saved state."""
        ...

    def position(self) -> Position | None:
        """Where the player is, if the game knows; for evaluation only, never recorded."""
        ...

    def remove_object(self, action: int) -> Mask | None:
        """Take the most prominent object in view out of the world; seen from the next step on.

        Args:
            action: what will be done next: what would leave the view by it is not chosen, where
                the game can tell.

        Returns:
            The pixels of the frame last shown that showed it; ``None``: there was no object, or
            this game cannot do it.
        """
        ...

    def teleport(self, rng: np.random.Generator) -> bool:
        """Move the player far away in the same level; seen from the next step on.

        Returns:
            Whether there was a place to go to, and this game can do it.
        """
        ...


def open_branching(plan: RecordPlan) -> Branching:
    """Start the game that a plan names, able to branch.

    Raises:
        ConfigError: no such game, or it cannot be shown at that size.
        DataError: the game's engine does not start.
    """
    if plan.source == "vizdoom":
        from iwm.gameplay.sources.vizdoom import VizdoomSource

        return VizdoomSource(plan, branching=True)
    return open_source(plan)


def open_source(plan: RecordPlan) -> Branching:
    """Start the game that a plan names.

    Raises:
        ConfigError: no such game, or it cannot be shown at that size.
        DataError: the game's engine does not start.
    """
    match plan.source:
        case "vizdoom":
            from iwm.gameplay.sources.vizdoom import VizdoomSource

            return VizdoomSource(plan)
        case "gymnasium":
            from iwm.gameplay.sources.gymnasium import GymnasiumSource

            return GymnasiumSource(plan)
        case "procedural":
            from iwm.gameplay.sources.procedural import SpriteWorld

            return SpriteWorld(plan)

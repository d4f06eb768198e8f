"""A world of moving sprites whose every number is known.

Coloured shapes drift over a tiled background and bounce off the edges; the player,
a white-rimmed square, moves as told and collects what it touches (reward 1). The
truth behind each frame (counts, positions, velocities, what is hidden) is recorded
beside it, so figures of a model can be held against it.

All arithmetic is on integers (1/16 pixel): the same on every machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from iwm.errors import ConfigError
from iwm.gameplay.config import RecordPlan
from iwm.gameplay.sources import Frame, Mask, Outcome, Position

WORLDS = ("sprites",)
ACTIONS = ("noop", "up", "down", "left", "right")
SHAPES = ("player", "square", "disc", "diamond", "cross")

TRUTH_SCHEMA = pa.schema(
    [
        pa.field("frame", pa.int64(), nullable=False),  # position in the frames file
        pa.field("count", pa.int32(), nullable=False),  # sprites besides the player
        pa.field(
            "sprites",
            pa.list_(
                pa.struct(
                    [
                        pa.field("id", pa.int32(), nullable=False),  # 0 is the player
                        pa.field("shape", pa.string(), nullable=False),  # one of SHAPES
                        pa.field("x", pa.float32(), nullable=False),  # centre, pixels from left
                        pa.field("y", pa.float32(), nullable=False),  # centre, pixels from top
                        pa.field("vx", pa.float32(), nullable=False),  # pixels a tic
                        pa.field("vy", pa.float32(), nullable=False),
                        pa.field("size", pa.int32(), nullable=False),  # side of its box, pixels
                        pa.field("visible", pa.int32(), nullable=False),  # its pixels not hidden
                    ]
                )
            ),
            nullable=False,
        ),
    ],
    metadata={b"iwm.truth.version": b"1"},
)

_UNIT = 16  # positions and velocities are integers of 1/16 pixel
_TICS_PER_SECOND = 10
_MIN_SIDE = 32
_TELEPORT_TRIES = 64
_DIRECTIONS = {"noop": (0, 0), "up": (0, -1), "down": (0, 1), "left": (-1, 0), "right": (1, 0)}


@dataclass
class _Sprite:
    number: int
    shape: str
    size: int
    colour: npt.NDArray[np.uint8]
    x: int  # left edge, units
    y: int
    vx: int
    vy: int


@dataclass(frozen=True)
class _State:
    background: Frame
    sprites: tuple[_Sprite, ...]


def _mask(shape: str, size: int) -> npt.NDArray[np.bool_]:
    """The pixels ``[size, size]`` that a shape covers."""
    # Twice the distance from the centre, so that it is an integer for even sizes too.
    offset = np.abs(2 * np.arange(size) - (size - 1))
    across, down = offset[None, :], offset[:, None]
    match shape:
        case "disc":
            mask = across**2 + down**2 <= size**2
        case "diamond":
            mask = across + down <= size
        case "cross":
            mask = (across <= size // 3) | (down <= size // 3)
        case _:
            mask = np.ones((size, size), np.bool_)
    return np.asarray(mask, np.bool_)


class SpriteWorld:
    """The world ``sprites``, at any size from 32x32.

    Raises:
        ConfigError: an unknown world, or frames too small.
    """

    actions: tuple[str, ...] = ACTIONS
    truth_schema: pa.Schema | None = TRUTH_SCHEMA

    def __init__(self, plan: RecordPlan) -> None:
        if plan.game not in WORLDS:
            raise ConfigError(f"record: no world {plan.game!r}; there is {', '.join(WORLDS)}")
        if min(plan.width, plan.height) < _MIN_SIDE:
            raise ConfigError(
                f"record: {plan.name}: the sprite world needs {_MIN_SIDE}x{_MIN_SIDE} pixels or "
                f"more, not {plan.width}x{plan.height}"
            )
        self._width, self._height = plan.width, plan.height
        self._scale = min(plan.width, plan.height) // 32
        self._tics = plan.frame_skip
        self.fps = _TICS_PER_SECOND / plan.frame_skip
        self.licence = "CC0-1.0 (drawn by this software)"
        self.software: Mapping[str, str] = {"numpy": version("numpy")}
        self.extra: Mapping[str, Any] = {"frame_skip": plan.frame_skip, "truth": "truth.parquet"}

    def reset(self, seed: int) -> Frame:
        """Begin an episode: a new background, 2 to 6 sprites, the player in the middle."""
        rng = np.random.Generator(np.random.PCG64(seed))
        tile = 4 * self._scale
        rows, columns = -(-self._height // tile), -(-self._width // tile)
        palette = rng.integers(20, 130, (4, 3), dtype=np.uint8)
        tiles = palette[rng.integers(0, 4, (rows, columns))]
        texture = np.repeat(np.repeat(tiles, tile, 0), tile, 1)[: self._height, : self._width]
        grain = rng.integers(0, 16, (self._height, self._width, 1), dtype=np.uint8)
        self._background = texture + grain
        size = 5 * self._scale
        self._sprites = [
            _Sprite(
                number=0,
                shape="player",
                size=size,
                colour=rng.integers(130, 256, 3, dtype=np.uint8),
                x=(self._width - size) * _UNIT // 2,
                y=(self._height - size) * _UNIT // 2,
                vx=0,
                vy=0,
            )
        ]
        for number in range(1, int(rng.integers(2, 7)) + 1):
            self._sprites.append(self._sprite(rng, number))
        # Sprites that stand on the player at the start would be collected unseen.
        self._collect()
        return self._draw()

    def _sprite(self, rng: np.random.Generator, number: int) -> _Sprite:
        size = int(rng.integers(5, 9)) * self._scale
        speed = 2 * _UNIT * self._scale
        velocity = rng.integers(_UNIT // 2, speed + 1, 2) * rng.choice((-1, 1), 2)
        return _Sprite(
            number=number,
            shape=SHAPES[1 + int(rng.integers(0, len(SHAPES) - 1))],
            size=size,
            colour=rng.integers(90, 256, 3, dtype=np.uint8),
            x=int(rng.integers(0, (self._width - size) * _UNIT + 1)),
            y=int(rng.integers(0, (self._height - size) * _UNIT + 1)),
            vx=int(velocity[0]),
            vy=int(velocity[1]),
        )

    def step(self, action: int) -> Outcome:
        """Move the world on; the episode is done when everything is collected."""
        player = self._sprites[0]
        right, down = _DIRECTIONS[ACTIONS[action]]
        player.vx, player.vy = (side * 3 * _UNIT * self._scale for side in (right, down))
        collected = 0
        for _ in range(self._tics):
            for sprite in self._sprites:
                self._move(sprite)
            collected += self._collect()
        return Outcome(self._draw(), float(collected), done=len(self._sprites) == 1)

    def _move(self, sprite: _Sprite) -> None:
        for axis, velocity, side in (("x", "vx", self._width), ("y", "vy", self._height)):
            limit = (side - sprite.size) * _UNIT
            place = getattr(sprite, axis) + getattr(sprite, velocity)
            if not 0 <= place <= limit:
                if sprite.number == 0:
                    place = min(max(place, 0), limit)
                else:
                    place = -place if place < 0 else 2 * limit - place
                    setattr(sprite, velocity, -getattr(sprite, velocity))
            setattr(sprite, axis, place)

    def _collect(self) -> int:
        player, *others = self._sprites
        left = [sprite for sprite in others if not _touch(player, sprite)]
        self._sprites = [player, *left]
        return len(others) - len(left)

    def _draw(self) -> Frame:
        frame = self._background.copy()
        owner = np.full(frame.shape[:2], -1, np.int32)
        for sprite in reversed(self._sprites):  # the player last, on top
            x, y, size = sprite.x // _UNIT, sprite.y // _UNIT, sprite.size
            picture, mask = self._appearance(sprite)
            frame[y : y + size, x : x + size][mask] = picture[mask]
            owner[y : y + size, x : x + size][mask] = sprite.number
        self._owner = owner
        return frame

    def _appearance(self, sprite: _Sprite) -> tuple[Frame, npt.NDArray[np.bool_]]:
        """A sprite's own picture [size, size, 3], and the pixels of it that it covers."""
        picture = np.broadcast_to(sprite.colour, (sprite.size, sprite.size, 3)).copy()
        if sprite.number == 0:
            rim = np.ones((sprite.size, sprite.size), np.bool_)
            rim[self._scale : -self._scale, self._scale : -self._scale] = False
            picture[rim] = 255
        return picture, _mask(sprite.shape, sprite.size)

    def layers(self) -> tuple[Frame, dict[int, tuple[Frame, npt.NDArray[np.bool_]]]]:
        """What the present frame is drawn from: the background, and by number every sprite's own
        picture [size, size, 3] with the pixels of it that it covers.
        """
        return self._background, {
            sprite.number: self._appearance(sprite) for sprite in self._sprites
        }

    def truth(self) -> dict[str, Any]:
        """The row of :data:`TRUTH_SCHEMA` for the frame last drawn, without ``frame``."""
        return {
            "count": len(self._sprites) - 1,
            "sprites": [
                {
                    "id": sprite.number,
                    "shape": sprite.shape,
                    "x": sprite.x // _UNIT + sprite.size / 2,
                    "y": sprite.y // _UNIT + sprite.size / 2,
                    "vx": sprite.vx / _UNIT,
                    "vy": sprite.vy / _UNIT,
                    "size": sprite.size,
                    "visible": int(np.count_nonzero(self._owner == sprite.number)),
                }
                for sprite in self._sprites
            ],
        }

    def save(self) -> _State:
        """A handle of the present state: a copy of everything that moves."""
        return _State(self._background, tuple(replace(sprite) for sprite in self._sprites))

    def restore(self, handle: _State) -> None:
        """Return to a saved state."""
        self._background = handle.background
        self._sprites = [replace(sprite) for sprite in handle.sprites]
        self._draw()

    def frame(self) -> Frame:
        """The world as it stands."""
        return self._draw()

    def position(self) -> Position:
        """The player's centre in pixels; it faces nowhere, so the angle is 0."""
        player = self._sprites[0]
        half = player.size / 2
        return player.x / _UNIT + half, player.y / _UNIT + half, 0.0

    def remove_object(self, action: int) -> Mask | None:
        """Remove the sprite of which most is seen, other than the player; none leaves the view."""
        del action
        seen = {
            sprite.number: int(np.count_nonzero(self._owner == sprite.number))
            for sprite in self._sprites[1:]
        }
        if not any(seen.values()):
            return None
        gone = max(seen, key=lambda number: seen[number])
        self._sprites = [sprite for sprite in self._sprites if sprite.number != gone]
        mask: Mask = self._owner == gone
        return mask

    def teleport(self, rng: np.random.Generator) -> bool:
        """Put the player on a free place at least a third of the shorter side away."""
        player = self._sprites[0]
        far = min(self._width, self._height) * _UNIT // 3
        for _ in range(_TELEPORT_TRIES):
            x = int(rng.integers((self._width - player.size) * _UNIT + 1))
            y = int(rng.integers((self._height - player.size) * _UNIT + 1))
            moved = replace(player, x=x, y=y)
            free = not any(_touch(moved, other) for other in self._sprites[1:])
            if free and max(abs(x - player.x), abs(y - player.y)) >= far:
                self._sprites[0] = moved
                return True
        return False

    def close(self) -> None:
        """Nothing to free."""


def _touch(one: _Sprite, other: _Sprite) -> bool:
    """Whether two sprites' boxes overlap."""
    return (
        abs(2 * (one.x - other.x) + (one.size - other.size) * _UNIT)
        < (one.size + other.size) * _UNIT
        and abs(2 * (one.y - other.y) + (one.size - other.size) * _UNIT)
        < (one.size + other.size) * _UNIT
    )

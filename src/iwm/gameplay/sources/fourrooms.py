"""Four rooms that stay: MiniGrid's FourRooms with one layout and random starts.

``MiniGrid-FourRooms-v0`` builds other walls for every seed. In the classic problem (Sutton,
Precup and Singh 1999) the rooms are one place that a player gets to know; here the seed
chooses the start alone. Its id for a recording plan is ``iwm.gameplay.sources.fourrooms:`` and
:data:`GAME`. The four actions that do nothing in these rooms are left out.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any

import gymnasium
import numpy as np

GAME = "FourRooms-v0"
LAYOUT = 0
"""The seed of MiniGrid's generator that all episodes share."""


class Move(IntEnum):
    """The actions that do something."""

    left = 0
    right = 1
    forward = 2


class FixedLayout(gymnasium.Wrapper[Any, Any, Any, Any]):
    """The layout of one seed; the seed of an episode places the player.

    Args:
        env: a MiniGrid environment whose objects do not move.
        layout: seed of the layout.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], layout: int = LAYOUT) -> None:
        super().__init__(env)
        self._layout = layout
        game: Any = self.unwrapped
        game.actions = Move
        self.action_space = gymnasium.spaces.Discrete(len(Move))

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Begin an episode in any free cell, facing anywhere."""
        self.env.reset(seed=self._layout, options=options)
        game: Any = self.unwrapped
        rng = np.random.default_rng(seed)
        free = [
            (x, y) for x in range(game.width) for y in range(game.height) if not game.grid.get(x, y)
        ]
        game.agent_pos = free[int(rng.integers(len(free)))]
        game.agent_dir = int(rng.integers(4))
        return game.gen_obs(), {}


gymnasium.register(
    GAME,
    entry_point="minigrid.envs.fourrooms:FourRoomsEnv",
    kwargs={"tile_size": 8},
    additional_wrappers=(
        gymnasium.envs.registration.WrapperSpec(
            "FixedLayout", "iwm.gameplay.sources.fourrooms:FixedLayout", {}
        ),
    ),
)

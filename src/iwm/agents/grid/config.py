"""Settings of the grid task and of training for it."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from iwm.errors import ConfigError
from iwm.settings import settings

Positive = Annotated[int, Field(gt=0)]
MOST_AGENTS = 10
"""The central planner tries all pairings: 945 of ten agents."""


@settings
class GridConfig:
    """The game."""

    size: Annotated[int, Field(ge=4, le=32)] = 10
    """Cells along a side."""
    agents: Annotated[int, Field(ge=2)] = 2
    tasks: Annotated[int, Field(ge=1, le=256)] = 20
    """On the board. Each takes two agents at once; not all need to be done."""
    view: Annotated[int, Field(ge=0, le=31)] = 2
    """An agent sees the cells at most so many rows and columns away."""

    def __post_init__(self) -> None:
        """Refuse teams that cannot pair up and boards that are more tasks than floor."""
        if self.agents % 2 or self.agents > MOST_AGENTS:
            raise ConfigError(
                f"grid: agents: expected an even number up to {MOST_AGENTS}, given {self.agents}"
            )
        if 2 * (self.tasks + self.agents) > self.size**2:
            raise ConfigError(
                f"grid: {self.tasks} tasks and {self.agents} agents crowd {self.size}x{self.size}"
            )


@settings
class LearnConfig:
    """Training: the same for every arm."""

    games: Positive = 128
    """Games of one update, all new."""
    updates: Positive = 60
    width: Positive = 32
    """Of the network."""
    learning_rate: Annotated[float, Field(gt=0)] = 4e-3
    seed: Annotated[int, Field(ge=0)] = 0
    model_updates: Positive = 200
    """Of the transition model."""

"""Configuration of agents."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from iwm.errors import ConfigError
from iwm.settings import settings

Positive = Annotated[int, Field(gt=0)]
Number = Annotated[float, Field(ge=0)]


@settings
class ArbiterConfig:
    """How actions are chosen."""

    horizon: Positive = 8
    """Actions of a plan."""
    candidates: Positive = 300
    """Sequences that one iteration of the search considers."""
    iterations: Positive = 10
    act: Positive = 1
    """Actions taken from one plan before the next is made; surprise ends it earlier."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Of the search."""
    actions: tuple[str, ...] = ()
    """Names to plan with; empty: all that the model knows."""
    wait_action: str = "wait"
    """What to do when there is nothing to do; the agent's own name for it."""
    surprise_threshold: Number = 2.0
    """Above it the agent slows down or waits."""
    on_surprise: Literal["slow", "wait"] = "slow"
    """``slow``: plan anew after every action; ``wait``: do nothing and look again."""
    max_waits: Positive = 3
    """Waits in a row; then it goes on, slowly, however surprising the world is."""
    confidence_threshold: Number = 0.5
    """Below it (``vision_mrr``) the reasoner is asked, if there is one."""
    reasoner_timeout_s: Annotated[float, Field(gt=0)] = 10.0

    def __post_init__(self) -> None:
        """Refuse to act longer than a plan."""
        if self.act > self.horizon:
            raise ConfigError(f"arbiter.act {self.act} exceeds arbiter.horizon {self.horizon}")

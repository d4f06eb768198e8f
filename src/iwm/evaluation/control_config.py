"""Configuration of the goal-reaching evaluation."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from iwm.errors import ConfigError
from iwm.planning.config import DistanceConfig, Reduction, SolverConfig, StepsConfig
from iwm.settings import settings

Positive = Annotated[int, Field(gt=0)]
Weight = Annotated[float, Field(ge=0)]


@settings
class CloningConfig:
    """The behaviour-cloning arm: a small network from latent and goal latent to an action."""

    hidden: Positive = 256
    steps: Positive = 2000
    batch_size: Positive = 512
    lr: Annotated[float, Field(gt=0)] = 1e-3
    horizon: Positive = 16
    """Goals are frames 1 to so many steps later in the same episode, drawn uniformly."""


@settings
class ControlConfig:
    """Goals to reach in one game, with a model trained on recordings of it."""

    plan: str
    """The entry of ``record.plans`` whose game is played, in fresh episodes."""
    recordings: tuple[str, ...] = ()
    """Recordings that distance and cloning learn from (their training split); empty: ``plan``."""
    phase: str = "action"
    """The trained model."""
    goals: Literal["explored", "played"]
    """``explored``: every state that can be reached is found by branching the game, and any of
    them may be the goal; for games with few states. ``played``: a frame that the recordings'
    policy reaches from the start."""
    actions: tuple[str, ...] = ()
    """Actions that all arms choose among; empty: the game's."""
    seeds: Positive = 3
    tasks: Positive = 50
    """Per seed."""
    first_seed: Annotated[int, Field(ge=0)] = 1_000_000
    goal_steps: tuple[Positive, Positive] = (6, 15)
    """``played``: steps from start to goal."""
    prefix_steps: tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]] = (0, 40)
    """``played``: steps from the episode's beginning to the start."""
    away: Weight = 0.0
    """``played``: goals are at least so far from the start, in the game's units."""
    budget: Annotated[float, Field(ge=1)] = 2.5
    """Steps allowed, as a multiple of the shortest path (``played``: of the steps played)."""
    distance: Weight = 0.0
    """Reached: at most so far from the goal's position, in the game's units ..."""
    angle: Annotated[float, Field(gt=0, le=180)] = 180.0
    """... and facing at most so many degrees away from the goal's."""
    solver: SolverConfig = SolverConfig()
    act: Positive = 1
    """Actions taken from each plan."""
    reduction: Reduction = "sum"
    temporal_weight: Weight = 1.0
    """Of the temporal distance to the goal, in steps."""
    latent_weight: Weight = 0.0
    """Of the latent distance to the goal, root mean square per dimension."""
    uncertainty_weight: Weight = 0.0
    oracle_solver: SolverConfig | None = None
    """``played``: the oracle arm's smaller budget, since it plays every candidate in the game;
    ``None`` leaves the arm out."""
    oracle_tasks: Positive | None = None
    """The oracle arm plays only so many of each seed's tasks; ``None``: all."""
    temporal: Literal["graph", "network"] = "graph"
    """The temporal distance: ``graph`` where states recur, ``network`` where they do not."""
    recall: bool = False
    """Exchange what is imagined for the remembered state it comes near to, as near as
    ``graph.imagined`` says; for games whose states recur (``temporal: graph``)."""
    graph: DistanceConfig = DistanceConfig()
    network: StepsConfig = StepsConfig()
    cloning: CloningConfig = CloningConfig()
    bootstrap: Annotated[int, Field(ge=100)] = 1000

    def __post_init__(self) -> None:
        """Refuse ranges that are empty."""
        if self.recall and self.temporal != "graph":
            raise ConfigError("control: recall needs the states that `temporal: graph` remembers")
        for name in ("goal_steps", "prefix_steps"):
            low, high = getattr(self, name)
            if low > high:
                raise ConfigError(f"control.{name}: {low} exceeds {high}")

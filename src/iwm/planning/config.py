"""Configuration of planning. Plain values only: importing this costs nothing."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from iwm.errors import ConfigError
from iwm.settings import settings

Positive = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
SolverName = Literal["random_shooting", "exhaustive", "cem", "icem", "mppi"]
Reduction = Literal["sum", "last", "min"]

DISCRETE_SOLVERS: tuple[SolverName, ...] = ("random_shooting", "exhaustive", "cem", "icem")
CONTINUOUS_SOLVERS: tuple[SolverName, ...] = ("random_shooting", "cem", "icem", "mppi")

MAX_CANDIDATES = 65_536
MAX_HORIZON = 1_024


@settings
class SolverConfig:
    """A search over action sequences; costs are lower-is-better.

    The budget is ``candidates`` x ``iterations`` sequences of ``horizon`` actions, the same for
    every solver; iCEM's population shrinks, so it uses less.
    """

    solver: SolverName = "icem"
    candidates: Annotated[int, Field(gt=0, le=MAX_CANDIDATES)] = 300
    """Sequences per iteration, all rolled out in one batch."""
    horizon: Annotated[int, Field(gt=0, le=MAX_HORIZON)] = 8
    """Actions per sequence, K."""
    iterations: Annotated[int, Field(gt=0, le=1000)] = 10
    elites: Positive = 30
    """CEM, iCEM: how many of the best set the next distribution."""
    momentum: Share = 0.1
    """CEM, iCEM: share of the old distribution in the new one."""
    floor: Annotated[float, Field(ge=0, lt=1)] = 0.02
    """Discrete CEM, iCEM: share of the uniform distribution that never dies out."""
    keep_elites: Share = 0.3
    """iCEM: share of the elites that stay in the next population, and in the next plan's first."""
    correlation: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """iCEM, discrete: chance that a step reuses the step before's random draw, which holds
    actions without changing any step's own distribution."""
    noise_exponent: Annotated[float, Field(ge=0, le=4)] = 2.0
    """iCEM, continuous: spectrum of the noise over time is 1/f to this power; 0 is white."""
    decay: Annotated[float, Field(ge=1)] = 1.25
    """iCEM: each iteration's population is smaller by this factor, at least twice the elites."""
    deviation: Annotated[float, Field(gt=0)] = 0.5
    """Continuous: first standard deviation, in half-widths of the action's range."""
    min_deviation: Annotated[float, Field(gt=0)] = 0.02
    """Continuous CEM, iCEM: the deviation never falls below this, in half-widths."""
    temperature: Annotated[float, Field(gt=0)] = 0.1
    """MPPI: lambda, in standard deviations of the finite costs of the iteration."""
    runners_up: Annotated[int, Field(ge=0)] = 4
    """Further distinct sequences that a plan names beside the best."""

    def __post_init__(self) -> None:
        """Refuse more elites than candidates."""
        if self.elites > self.candidates:
            raise ConfigError(
                f"planning.elites {self.elites} exceeds planning.candidates {self.candidates}"
            )


@settings
class DistanceConfig:
    """Fitting a temporal distance to recorded play (see :mod:`iwm.planning.distance`)."""

    max_nodes: Annotated[int, Field(gt=1, le=16_384)] = 3000
    """Most distinct latents remembered; the radius of what counts as one grows until they fit."""
    merge: Annotated[float, Field(ge=0)] = 0.03
    """Latents nearer than this are one state; in units of the median change of a step."""
    coverage: Share = 0.95
    """Share of the frames that must be able to reach each other; while they cannot, ever more
    distant look-alikes of different episodes are taken for neighbours."""
    max_link: Annotated[float, Field(ge=0)] = 1.5
    """Most distant look-alikes that may be linked, in the same units."""
    imagined: Annotated[float, Field(ge=0)] = 0.5
    """A world model's prediction within this of a remembered latent adds a step to it, in the
    same units; 0: only steps that somebody took."""
    imagined_steps: Annotated[float, Field(ge=1)] = 1.2
    """What an imagined step counts as: of two equal ways the one that was really taken wins."""
    neighbours: Annotated[int, Field(gt=0, le=64)] = 3
    """A latent's distance is the mean over so many remembered latents nearest to it, weighted."""
    max_distance: Annotated[float, Field(gt=1)] = 128.0
    """Steps; larger distances, and unreachable goals, count as this."""


@settings
class StepsConfig:
    """Fitting a network that tells steps to a goal (see :mod:`iwm.planning.steps`)."""

    hidden: Positive = 256
    steps: Positive = 1500
    batch_size: Positive = 512
    lr: Annotated[float, Field(gt=0)] = 1e-3
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    horizon: Positive = 24
    """Goals are 0 to so many steps ahead in the same episode ..."""
    anywhere: Share = 0.3
    """... but for this share, which are any frames and count as ``far`` steps."""
    far: Annotated[float, Field(gt=0)] = 32.0
    expectile: Annotated[float, Field(gt=0, lt=1)] = 0.1
    seed: int = 0

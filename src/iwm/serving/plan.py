"""Plans: a search over named actions in a model's imagination, and its answer."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from iwm.planning.config import SolverConfig, SolverName
from iwm.planning.costs import Cost, GoalLatent, Uncertainty, Weighted
from iwm.planning.dynamics import Discrete, ModelDynamics, Trajectories
from iwm.planning.planner import Candidate, Planner

if TYPE_CHECKING:
    from iwm.serving.engine import Earlier, Engine

Floats = npt.NDArray[np.float32]


class Abandoned(Exception):
    """Nobody waits for this plan any more."""


@dataclass(frozen=True)
class Search:
    """What to look for, and how long.

    Args:
        z_cls: [D], where it starts.
        goal: [D], or ``None`` for a scoring that needs none.
        scoring: ``goal``, ``certainty`` or ``curiosity``.
        actions: which may be used, in the model's own words.
        horizon: actions of a sequence.
        candidates: sequences rolled out together.
        iterations: of the search.
        seed: the same seed finds the same plan.
        history: at most the engine's ``history`` earlier frames, batch of 1.
        abandoned: asked before each iteration; the search ends when it says yes.
    """

    z_cls: Floats
    goal: Floats | None
    scoring: str
    actions: tuple[str, ...]
    horizon: int = 8
    candidates: int = 300
    iterations: int = 10
    seed: int = 0
    history: Earlier | None = None
    abandoned: Callable[[], bool] = lambda: False


@dataclass(frozen=True)
class Planned:
    """The best sequence [K], runners-up best first; scores: higher is better.

    ``z_cls [K, D]`` and ``uncertainty [K]`` (``None`` without a calibration) along the best.
    """

    actions: tuple[str, ...]
    score: float
    runners_up: tuple[tuple[tuple[str, ...], float], ...]
    z_cls: Floats
    uncertainty: Floats | None
    milliseconds: float


class _Watched:
    """A cost that gives up when nobody waits."""

    def __init__(self, cost: Cost, abandoned: Callable[[], bool]) -> None:
        self._cost, self._abandoned = cost, abandoned

    def __call__(self, trajectories: Trajectories) -> Tensor:
        if self._abandoned():
            raise Abandoned
        return self._cost(trajectories)


def search(engine: Engine, wanted: Search) -> Planned:
    """Search on the engine's device. iCEM, or all sequences where the budget holds them.

    Raises:
        Abandoned: nobody waits any more.
        ModelError: the model predicts no finite numbers from here.
    """
    started = time.perf_counter()
    space = Discrete(wanted.actions)
    every = len(space) ** wanted.horizon <= wanted.candidates * wanted.iterations
    solver: SolverName = "exhaustive" if every else "icem"
    config = SolverConfig(
        solver=solver,
        candidates=wanted.candidates,
        horizon=wanted.horizon,
        iterations=wanted.iterations,
        # A tenth, as in the defaults: 30 of 300.
        elites=max(1, wanted.candidates // 10),
    )
    with torch.inference_mode(), engine.numbers.context():
        here = ModelDynamics(
            engine.model,
            space,
            engine.tensor(wanted.z_cls),
            engine.past(wanted.history),
        )
        cost = _Watched(_cost(engine, wanted), wanted.abandoned)
        plan = Planner(space, config, wanted.seed).plan(here, cost)
    best = engine.rollout(
        wanted.z_cls[None], engine.action_vector(plan.best.names)[None], history=wanted.history
    )
    return Planned(
        *_scored(plan.best),
        tuple(_scored(other) for other in plan.runners_up),
        best.z_cls[0],
        None if best.uncertainty is None else best.uncertainty[0],
        1000 * (time.perf_counter() - started),
    )


def _cost(engine: Engine, wanted: Search) -> Cost:
    if wanted.goal is not None:
        return GoalLatent(engine.tensor(wanted.goal))
    sign = 1.0 if wanted.scoring == "certainty" else -1.0
    return Weighted([(sign, Uncertainty())])


def _scored(candidate: Candidate) -> tuple[tuple[str, ...], float]:
    # Adding 0 turns the -0.0 of a free candidate into 0.
    return candidate.names, 0.0 - candidate.cost

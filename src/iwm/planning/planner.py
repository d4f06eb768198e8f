"""Plans: the best action sequence found, what else was good, and how long it took."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from iwm.errors import ModelError
from iwm.planning.config import SolverConfig
from iwm.planning.costs import Cost
from iwm.planning.dynamics import Discrete, Dynamics, Space
from iwm.planning.solvers import Solution, Warm, make_solver, shifted


@dataclass(frozen=True)
class Candidate:
    """One action sequence and its cost."""

    actions: Tensor
    """int64 [K] or float32 [K, C]."""
    names: tuple[str, ...]
    """The actions' names; empty for continuous actions."""
    cost: float


@dataclass(frozen=True)
class Plan:
    """What a search found."""

    best: Candidate
    runners_up: tuple[Candidate, ...]
    """Further distinct sequences, best first."""
    curve: tuple[float, ...]
    """Best cost after each iteration."""
    candidates: int
    """Sequences considered."""
    rollouts: int
    """Sequences that the dynamics really rolled out: a repeated one is remembered."""
    wall_s: float
    """Seconds in all."""
    dynamics_s: float
    """Seconds of them in the dynamics."""
    warm: Warm
    """For the next plan; see :func:`~iwm.planning.solvers.shifted`."""


class Planner:
    """Searches a space with one solver.

    Args:
        space: what an action is.
        config: solver and budget.
        seed: of the search.
        remember: roll a repeated discrete sequence out once per plan; the result is the same.

    Raises:
        ConfigError: the solver does not fit the space.
    """

    def __init__(
        self, space: Space, config: SolverConfig, seed: int = 0, *, remember: bool = True
    ) -> None:
        self.space, self.config = space, config
        self._solver = make_solver(space, config, seed)
        # A sequence's number in base n must fit an int64.
        fits = isinstance(space, Discrete) and config.horizon * math.log2(len(space) + 1) < 62
        self._remember = remember and fits

    def plan(self, dynamics: Dynamics, cost: Cost, warm: Warm | None = None) -> Plan:
        """Search for the cheapest sequence.

        Args:
            dynamics: the world in its present state.
            cost: of what a sequence leads to.
            warm: where to start; nothing is known if ``None``.

        Raises:
            ModelError: no candidate has a finite cost.
            ConfigError: a cost or a warm start of the wrong shape.
        """
        started = time.perf_counter()
        meter = _Meter(dynamics, cost, len(self.space) if self._remember else None)
        solution = self._solver.solve(meter, warm)
        if not math.isfinite(solution.curve[-1]):
            raise ModelError(
                f"planning: none of {solution.evaluations} candidates has a finite cost; the model "
                "or the cost function gives no numbers here"
            )
        candidates = self._candidates(solution)
        return Plan(
            best=candidates[0],
            runners_up=candidates[1:],
            curve=solution.curve,
            candidates=solution.evaluations,
            rollouts=meter.rollouts,
            wall_s=time.perf_counter() - started,
            dynamics_s=meter.dynamics_s,
            warm=solution.warm,
        )

    def _candidates(self, solution: Solution) -> tuple[Candidate, ...]:
        return tuple(
            Candidate(actions, self._names(actions), float(cost))
            for actions, cost in zip(solution.actions, solution.costs, strict=True)
            if math.isfinite(cost)
        )

    def _names(self, actions: Tensor) -> tuple[str, ...]:
        if not isinstance(self.space, Discrete):
            return ()
        return tuple(self.space.names[number] for number in actions.tolist())


class Controller:
    """Model-predictive control: plan, act on the plan's first steps, plan again from there.

    Args:
        planner: searches.
        act: actions taken from each plan before the next one.
    """

    def __init__(self, planner: Planner, act: int = 1) -> None:
        self.planner = planner
        self.act = min(act, planner.config.horizon)
        self.reset()

    def reset(self) -> None:
        """Forget the last plan: a new episode or goal."""
        self._warm: Warm | None = None

    def step(self, dynamics: Dynamics, cost: Cost) -> tuple[Tensor, Plan]:
        """Plan from the present state.

        Returns:
            The actions to take now, [act] or [act, C], and the whole plan.
        """
        plan = self.planner.plan(dynamics, cost, self._warm)
        self._warm = shifted(plan.warm, self.act)
        return plan.best.actions[: self.act], plan


class _Meter:
    """Costs of candidates: rolled out in one batch, timed, repeats remembered."""

    def __init__(self, dynamics: Dynamics, cost: Cost, base: int | None) -> None:
        self._dynamics, self._cost, self._base = dynamics, cost, base
        self._codes = torch.empty(0, dtype=torch.int64)
        self._costs = torch.empty(0)
        self.rollouts, self.dynamics_s = 0, 0.0

    def __call__(self, actions: Tensor) -> Tensor:
        if self._base is None:
            return self._evaluate(actions)
        place = self._base ** torch.arange(actions.shape[1])
        codes, first, back = _unique((actions * place).sum(1))
        at = torch.searchsorted(self._codes, codes).clamp_max(max(len(self._codes) - 1, 0))
        known = torch.zeros(len(codes), dtype=torch.bool)
        costs = torch.empty(len(codes))
        if len(self._codes):
            known = self._codes[at] == codes
            costs[known] = self._costs[at[known]]
        new = ~known
        if bool(new.any()):
            costs[new] = self._evaluate(actions[first[new]]).float().cpu()
            self._codes, order = torch.cat([self._codes, codes[new]]).sort()
            self._costs = torch.cat([self._costs, costs[new]])[order]
        return costs[back]

    def _evaluate(self, actions: Tensor) -> Tensor:
        started = time.perf_counter()
        trajectories = self._dynamics.rollout(actions)
        if trajectories.latents.device.type != "cpu":
            torch.accelerator.synchronize()
        self.dynamics_s += time.perf_counter() - started
        self.rollouts += len(actions)
        return self._cost(trajectories)


def _unique(codes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sorted distinct values, where each first stands, and each element's value's place."""
    values, back = torch.unique(codes, return_inverse=True)
    first = torch.full((len(values),), len(codes), dtype=torch.int64)
    first.scatter_reduce_(0, back, torch.arange(len(codes)), "amin")
    return values, first, back

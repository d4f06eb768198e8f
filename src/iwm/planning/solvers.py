"""Searches for a cheap action sequence: random shooting, exhaustive, CEM, iCEM, MPPI.

A solver proposes populations of candidates, is told their costs, and never sees the world.
CEM: Rubinstein 1999. iCEM (kept elites, coloured noise, decaying population): Pinneri et al.,
arXiv 2008.06389. MPPI: Williams et al., arXiv 1509.01149. For discrete actions the distribution
is one categorical a step.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from iwm.errors import ConfigError
from iwm.planning.config import CONTINUOUS_SOLVERS, DISCRETE_SOLVERS, SolverConfig
from iwm.planning.dynamics import Box, Discrete, Space

Evaluate = Callable[[Tensor], Tensor]
"""Candidates, int64 [B, K] or float32 [B, K, C] -> costs [B]; not finite means worst."""


@dataclass(frozen=True)
class Warm:
    """Where a search starts: what an earlier one of the same horizon ended with, shifted."""

    mean: Tensor
    """Probabilities [K, n] (discrete) or actions [K, C]."""
    elites: Tensor
    """Sequences to try first: [E, K] or [E, K, C]; E may be 0."""


@dataclass(frozen=True)
class Solution:
    """How a search ended."""

    actions: Tensor
    """Distinct sequences, best first: int64 [N, K] or float32 [N, K, C]; N >= 1."""
    costs: Tensor
    """[N], ascending; infinite where no cost was finite."""
    warm: Warm
    """The last distribution and elites, not shifted."""
    evaluations: int
    """Sequences whose cost was asked for."""
    curve: tuple[float, ...]
    """Best cost after each iteration; never rises."""


class Solver(Protocol):
    """One way of searching."""

    def solve(self, evaluate: Evaluate, warm: Warm | None = None) -> Solution:
        """Search. The generator goes on where the last search left it."""
        ...


def make_solver(space: Space, config: SolverConfig, seed: int = 0) -> Solver:
    """The solver that ``config`` names, for a space.

    Args:
        space: what an action is.
        config: which solver and its budget.
        seed: of the solver's own generator; the same seed gives the same searches.

    Raises:
        ConfigError: the solver does not fit the space, or too many sequences to list.
    """
    fitting = DISCRETE_SOLVERS if isinstance(space, Discrete) else CONTINUOUS_SOLVERS
    if config.solver not in fitting:
        kind = "discrete" if isinstance(space, Discrete) else "continuous"
        raise ConfigError(
            f"planning.solver {config.solver!r} is not for {kind} actions; {', '.join(fitting)} are"
        )
    if isinstance(space, Discrete) and config.solver == "exhaustive":
        return Exhaustive(space, config)
    proposal: Proposal
    if isinstance(space, Discrete):
        proposal = Categorical(space, config)
    else:
        proposal = Gaussian(space, config)
    return Search(proposal, config, seed)


class Proposal(Protocol):
    """A distribution over sequences that a search sharpens."""

    def reset(self, mean: Tensor | None) -> None:
        """Begin anew, around ``mean`` if given."""
        ...

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw sequences within the bounds."""
        ...

    def centre(self) -> Tensor:
        """The distribution's single best guess, [1, K] or [1, K, C]."""
        ...

    def mean(self) -> Tensor:
        """What :meth:`reset` takes: [K, n] or [K, C]."""
        ...

    def learn(self, actions: Tensor, costs: Tensor) -> None:
        """Move towards cheap sequences; ``costs`` ascend and all are finite."""
        ...


class Categorical:
    """One categorical distribution a step."""

    def __init__(self, space: Discrete, config: SolverConfig) -> None:
        self._size, self._config = len(space), config
        # Without a learner, random shooting stays uniform: no draw is held.
        self._hold = config.correlation if config.solver == "icem" else 0.0
        self.reset(None)

    def reset(self, mean: Tensor | None) -> None:
        """Uniform, or ``mean`` mixed with the uniform distribution."""
        shape = (self._config.horizon, self._size)
        uniform = torch.full(shape, 1 / self._size)
        if mean is not None and mean.shape != shape:
            raise ConfigError(f"planning: warm start is {tuple(mean.shape)}, expected {shape}")
        self._p = uniform if mean is None else self._floored(mean.float())

    def _floored(self, p: Tensor) -> Tensor:
        return (1 - self._config.floor) * p + self._config.floor / self._size

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Gumbel-max draws; a held step takes the draw of the step before.

        Each step's Gumbel noise is fresh or a copy of the last step's, either way Gumbel, so
        every step follows its own distribution while neighbours agree more often.
        """
        horizon = self._config.horizon
        uniform = torch.rand(count, horizon, self._size, generator=generator)
        noise = -torch.log(-torch.log(uniform.clamp(1e-20, 1 - 1e-7)))
        if self._hold:
            held = torch.rand(count, horizon, generator=generator) < self._hold
            held[:, 0] = False
            # For each step, the last step at or before it that drew for itself.
            source = torch.where(held, 0, torch.arange(horizon)).cummax(1).values
            noise = noise.gather(1, source.unsqueeze(-1).expand(-1, -1, self._size))
        return (self._p.clamp_min(1e-12).log() + noise).argmax(-1)

    def centre(self) -> Tensor:
        """The most likely action of each step."""
        return self._p.argmax(-1).unsqueeze(0)

    def mean(self) -> Tensor:
        """Probabilities [K, n]."""
        return self._p

    def learn(self, actions: Tensor, costs: Tensor) -> None:  # noqa: ARG002
        """Frequencies among the elites, smoothed (``costs`` only order them)."""
        elites = actions[: self._config.elites]
        frequency = torch.nn.functional.one_hot(elites, self._size).float().mean(0)
        momentum = self._config.momentum
        self._p = self._floored((1 - momentum) * frequency + momentum * self._p)


class Gaussian:
    """One independent Gaussian a step and dimension, cut at the bounds."""

    def __init__(self, space: Box, config: SolverConfig) -> None:
        self._config = config
        self._low, self._high = torch.tensor(space.low), torch.tensor(space.high)
        self._half = (self._high - self._low) / 2
        self.reset(None)

    def reset(self, mean: Tensor | None) -> None:
        """Around the middle of the range, or around ``mean``."""
        middle = (self._low + self._high) / 2
        shape = (self._config.horizon, len(middle))
        if mean is not None and mean.shape != shape:
            raise ConfigError(f"planning: warm start is {tuple(mean.shape)}, expected {shape}")
        self._mean = middle.expand(shape) if mean is None else self._cut(mean.float())
        self._std = (self._config.deviation * self._half).expand(shape)

    def _cut(self, actions: Tensor) -> Tensor:
        return torch.minimum(torch.maximum(actions, self._low), self._high)

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """[count, K, C]; uniform for random shooting, coloured noise for iCEM."""
        shape = (count, *self._mean.shape)
        if self._config.solver == "random_shooting":
            share = torch.rand(shape, generator=generator)
            return self._cut(self._low + 2 * self._half * share)
        exponent = self._config.noise_exponent if self._config.solver == "icem" else 0.0
        return self._cut(self._mean + self._std * coloured_noise(shape, exponent, generator))

    def centre(self) -> Tensor:
        """The mean."""
        return self._mean.unsqueeze(0)

    def mean(self) -> Tensor:
        """[K, C]."""
        return self._mean

    def learn(self, actions: Tensor, costs: Tensor) -> None:
        """Elites' mean and deviation (CEM, iCEM); exponential weights, same deviation (MPPI)."""
        c = self._config
        if c.solver == "mppi":
            spread = float(costs.std(correction=0))
            weight = torch.softmax(-(costs - costs[0]) / (c.temperature * spread + 1e-12), 0)
            self._mean = self._cut((weight.view(-1, 1, 1) * actions).sum(0))
            return
        elites = actions[: c.elites]
        std = elites.std(0, correction=0)
        self._mean = self._cut((1 - c.momentum) * elites.mean(0) + c.momentum * self._mean)
        std = (1 - c.momentum) * std + c.momentum * self._std
        self._std = torch.maximum(std, c.min_deviation * self._half)


def coloured_noise(shape: tuple[int, ...], exponent: float, generator: torch.Generator) -> Tensor:
    """Unit-variance Gaussian noise [B, K, C] whose power over time K falls as 1/f**exponent.

    Timmer and Koenig (1995): white noise shaped in the frequency domain. The constant term has
    the lowest frequency's amplitude.
    """
    white = torch.randn(shape, generator=generator)
    length = shape[1]
    if exponent == 0 or length == 1:
        return white
    frequency = torch.fft.rfftfreq(length).clamp_min(1 / length)
    amplitude = frequency ** (-exponent / 2)
    # Each bin stands for two mirrored ones, but for the constant and the Nyquist frequency.
    twice = torch.full_like(amplitude, 2.0)
    twice[0] = 1.0
    if length % 2 == 0:
        twice[-1] = 1.0
    amplitude = amplitude / ((twice * amplitude**2).sum() / length).sqrt()
    spectrum = torch.fft.rfft(white, dim=1) * amplitude.view(1, -1, 1)
    noise: Tensor = torch.fft.irfft(spectrum, n=length, dim=1)
    return noise


class Search:
    """Random shooting, CEM, iCEM and MPPI: propose, cost, learn, again.

    Args:
        proposal: the distribution.
        config: budget and settings.
        seed: of the generator.
    """

    def __init__(self, proposal: Proposal, config: SolverConfig, seed: int = 0) -> None:
        self._proposal, self._config = proposal, config
        self._generator = torch.Generator().manual_seed(seed)

    def solve(self, evaluate: Evaluate, warm: Warm | None = None) -> Solution:
        """Search.

        The distribution's centre is a candidate of every iteration but the first cold one; a
        warm start's elites are candidates of the first.

        Raises:
            ConfigError: a warm start of another shape.
        """
        c, proposal = self._config, self._proposal
        learns = c.solver != "random_shooting"
        proposal.reset(warm.mean if learns and warm is not None else None)
        best: tuple[Tensor, Tensor] | None = None
        kept: tuple[Tensor, Tensor] | None = None
        evaluations, curve = 0, []
        for iteration in range(c.iterations):
            count = self._population(iteration)
            actions = proposal.sample(count, self._generator)
            given = []
            if learns and (warm is not None or iteration):
                given.append(proposal.centre())
            if warm is not None and iteration == 0:
                given.append(warm.elites[: count - 1])
            if given:
                known = torch.cat(given)[:count].to(actions.dtype)
                actions = torch.cat([known, actions[: count - len(known)]])
            costs = finite_or_worst(evaluate(actions), count)
            evaluations += count
            if kept is not None:  # their costs are known: they take no place in the budget
                actions, costs = torch.cat([kept[0], actions]), torch.cat([kept[1], costs])
            actions, costs = ordered(actions, costs)
            usable = int(torch.isfinite(costs).sum())
            if learns and usable:
                proposal.learn(actions[:usable], costs[:usable])
            if c.solver == "icem":
                share = math.ceil(c.keep_elites * c.elites)
                kept = actions[:share], costs[:share]
            both = actions, costs
            if best is not None:
                both = ordered(torch.cat([best[0], actions]), torch.cat([best[1], costs]))
            best = distinct(*both, c.runners_up + 1)
            curve.append(float(best[1][0]))
        assert best is not None
        carried = actions[: math.ceil(c.keep_elites * c.elites)]
        return Solution(*best, Warm(proposal.mean(), carried), evaluations, tuple(curve))

    def _population(self, iteration: int) -> int:
        c = self._config
        if c.solver != "icem":
            return c.candidates
        shrunk = int(c.candidates * c.decay**-iteration)
        return min(c.candidates, max(shrunk, 2 * c.elites))


class Exhaustive:
    """Every sequence, where there are no more than the budget has: the certain optimum."""

    def __init__(self, space: Discrete, config: SolverConfig) -> None:
        count, budget = len(space) ** config.horizon, config.candidates * config.iterations
        if count > budget:
            raise ConfigError(
                f"planning.solver exhaustive: {len(space)} actions over {config.horizon} steps are "
                f"{count} sequences, more than candidates x iterations = {budget}"
            )
        every = itertools.product(range(len(space)), repeat=config.horizon)
        self._actions, self._config, self._size = torch.tensor(list(every)), config, len(space)

    def solve(self, evaluate: Evaluate, warm: Warm | None = None) -> Solution:  # noqa: ARG002
        """Evaluate all, ``candidates`` at a time; a warm start makes no difference."""
        found = [
            finite_or_worst(evaluate(part), len(part))
            for part in torch.split(self._actions, self._config.candidates)
        ]
        actions, costs = ordered(self._actions, torch.cat(found))
        best = distinct(actions, costs, self._config.runners_up + 1)
        frequency = torch.nn.functional.one_hot(actions[: self._config.elites], self._size)
        warmth = Warm(frequency.float().mean(0), actions[:1])
        return Solution(*best, warmth, len(costs), (float(costs[0]),))


def finite_or_worst(costs: Tensor, count: int) -> Tensor:
    """Costs [count] as float32 on the CPU, infinite where they are not finite.

    Raises:
        ConfigError: a cost of another shape.
    """
    if costs.shape != (count,):
        raise ConfigError(f"planning: costs are {tuple(costs.shape)}, expected ({count},)")
    costs = costs.detach().float().cpu()
    return torch.where(torch.isfinite(costs), costs, torch.inf)


def ordered(actions: Tensor, costs: Tensor) -> tuple[Tensor, Tensor]:
    """Cheapest first; equal costs keep their order."""
    costs, order = costs.sort(stable=True)
    return actions[order], costs


def distinct(actions: Tensor, costs: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The first ``count`` different sequences of an ordered population."""
    values, back = torch.unique(actions, dim=0, return_inverse=True)
    first = torch.full((len(values),), len(actions), dtype=torch.int64)
    first = first.scatter_reduce(0, back, torch.arange(len(actions)), "amin")
    chosen = first.sort().values[:count]
    return actions[chosen], costs[chosen]


def shifted(warm: Warm, steps: int = 1) -> Warm:
    """A warm start for the state ``steps`` actions later.

    Discrete: the new last steps are uniform; continuous: they repeat the last mean. Elites
    repeat their last action.
    """
    horizon = len(warm.mean)
    steps = min(steps, horizon)
    later = torch.arange(steps, horizon + steps).clamp_max(horizon - 1)
    mean = warm.mean[later].clone()
    if not warm.elites.is_floating_point():
        mean[horizon - steps :] = 1 / warm.mean.shape[1]
    return Warm(mean, warm.elites[:, later])

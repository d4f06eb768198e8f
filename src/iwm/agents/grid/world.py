"""The game: tasks that take two, on a grid, and agents that see only what is near them.

Everybody knows the grid, the board (where the tasks are), its own position and the clock; the
others are seen within ``view`` cells only. A team wins when every agent stands on a task together
with another, and has lost if a central planner, who sees everything, would have been there sooner:
who works with whom, and on what, is for the agents to agree on. The game opens with one round in
which everybody talks and nobody moves.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from iwm.agents.grid.config import GridConfig

MOVES = ((0, 0), (0, -1), (0, 1), (-1, 0), (1, 0))
"""(columns, rows) of an action: stay, up, down, left, right."""
_DELTAS = torch.tensor(MOVES)


def moved(position: Tensor, action: Tensor, size: int) -> Tensor:
    """Where an action leads: the grid's edge holds.

    Args:
        position: int64 ``[..., 2]``, (column, row).
        action: int64 ``[...]``, an index into :data:`MOVES`.
        size: cells along a side.
    """
    return (position + _DELTAS[action]).clamp(0, size - 1)


def cell_of(position: Tensor, size: int) -> Tensor:
    """The number ``[...]`` of a cell ``[..., 2]``, row by row."""
    return position[..., 1] * size + position[..., 0]


@dataclass(frozen=True)
class Sight:
    """What every agent knows by itself, in ``B`` games of ``N`` agents and ``K`` tasks."""

    position: Tensor
    """int64 ``[B, N, 2]``: its own."""
    tasks: Tensor
    """int64 ``[B, K, 2]``: the board, the same for all."""
    visible: Tensor
    """bool ``[B, N, N]``: agent j is in i's view."""
    others: Tensor
    """int64 ``[B, N, N, 2]``: j's position where i sees it, -1 elsewhere."""
    clock: int
    """Moves so far."""


class Games:
    """``count`` games side by side.

    Args:
        config: the game.
        count: how many.
        seed: of the boards.
    """

    def __init__(self, config: GridConfig, count: int, seed: int) -> None:
        self.config, self.count = config, count
        size, agents = config.size, config.agents
        draw = torch.Generator().manual_seed(seed)
        cells = torch.rand(count, size * size, generator=draw).argsort(1)
        cells = cells[:, : agents + config.tasks]
        places = torch.stack((cells % size, cells // size), -1)
        self.position = places[:, :agents].clone()
        self.tasks = places[:, agents:].clone()
        self.clock = 0
        self.finished_at = torch.full((count,), -1)
        """Moves after which everybody was at work; -1 until then."""

    @property
    def active(self) -> Tensor:
        """bool ``[B]``: games that go on."""
        return self.finished_at < 0

    def step(self, action: Tensor) -> None:
        """Everybody moves at once; games that are over stand still.

        Args:
            action: int64 ``[B, N]``, indices into :data:`MOVES`.
        """
        held = torch.where(self.active[:, None], action, torch.zeros_like(action))
        self.position = moved(self.position, held, self.config.size)
        self.clock += 1
        over = self.at_work().all(1) & self.active
        self.finished_at = torch.where(over, self.clock, self.finished_at)

    def at_work(self) -> Tensor:
        """bool ``[B, N]``: stands on a task, and not alone."""
        here = (self.position[:, :, None] == self.tasks[:, None]).all(-1)
        company = here.sum(1, keepdim=True) >= 2
        return (here & company).any(-1)

    def look(self) -> Sight:
        """What everybody sees now."""
        apart = (self.position[:, :, None] - self.position[:, None]).abs().amax(-1)
        visible = apart <= self.config.view
        visible = visible & ~torch.eye(self.config.agents, dtype=torch.bool)
        others = torch.where(visible[..., None], self.position[:, None], -1)
        return Sight(self.position, self.tasks, visible, others, self.clock)


@lru_cache
def pairings(agents: int) -> Tensor:
    """All ways to form pairs: int64 ``[P, agents / 2, 2]``; 945 for ten agents."""

    def split(left: list[int]) -> list[list[tuple[int, int]]]:
        if not left:
            return [[]]
        first, rest = left[0], left[1:]
        return [
            [(first, other), *more]
            for other in rest
            for more in split([one for one in rest if one != other])
        ]

    return torch.tensor(split(list(range(agents))))


@lru_cache
def pair_numbers(agents: int) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs by number, the lower agent first.

    Returns:
        Number int64 ``[N, N]`` of the pair of two agents (0 on the diagonal, which is none), the
        members ``[2, N (N - 1) / 2]`` of every pair, and the pairs ``[P, N / 2]`` of every pairing.
    """
    members = torch.triu_indices(agents, agents, 1)
    number = torch.zeros(agents, agents, dtype=torch.int64)
    number[members[0], members[1]] = torch.arange(members.shape[1])
    number = number + number.T
    pairs = pairings(agents)
    return number, members, number[pairs[..., 0], pairs[..., 1]]


@dataclass(frozen=True)
class Assignment:
    """What the central planner would have agents do."""

    task: Tensor
    """int64 ``[B, N]``: the task of each."""
    partner: Tensor
    """int64 ``[B, N]``: whom each meets there."""
    moves: Tensor
    """int64 ``[B]``: until the last pair is at work."""


def assignment(position: Tensor, tasks: Tensor, target: Tensor | None = None) -> Assignment:
    """The central planner, who sees everything: the pairs and tasks that are at work soonest.

    Exact: every pair's best task, then the best of all pairings. The last pair counts. Of plans
    that are equally good it takes those that agents follow already (the lower number's first),
    then those with the shorter walks, then the task and the pairing that come first.

    Args:
        position: int64 ``[B, N, 2]``.
        tasks: int64 ``[B, K, 2]``.
        target: int64 ``[B, N]``, the tasks that agents go for now, if they do.
    """
    games, agents = position.shape[:2]
    walk = (position[:, :, None] - tasks[:, None]).abs().sum(-1)
    follows = torch.zeros_like(walk)
    if target is not None:
        follows = (target[..., None] == torch.arange(tasks.shape[1])).long()
    _, (left, right), of_pairing = pair_numbers(agents)
    moves = torch.maximum(walk[:, left], walk[:, right])
    taste = walk[:, left] + walk[:, right] - 200 * follows[:, left] - 100 * follows[:, right]
    best, where = (1000 * moves + taste).min(-1)
    least = moves.gather(2, where[..., None])[..., 0]
    last = least[:, of_pairing].amax(-1)
    chosen = (1_000_000 * last + best[:, of_pairing].sum(-1)).argmin(1)
    pairs = pairings(agents)[chosen]  # [B, N / 2, 2]
    picked = where.gather(1, of_pairing[chosen])
    task = torch.empty(games, agents, dtype=torch.int64)
    partner = torch.empty_like(task)
    for one, other in ((0, 1), (1, 0)):
        task.scatter_(1, pairs[..., one], picked)
        partner.scatter_(1, pairs[..., one], pairs[..., other])
    return Assignment(task, partner, last[torch.arange(games), chosen])

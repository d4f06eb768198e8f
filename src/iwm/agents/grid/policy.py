"""The network that every agent of every arm runs: with whom to work, on what, and one bit to say.

An agent imagines all joint plans, that is all ways to form pairs and all tasks for each pair, and
scores them: a plan's score is the sum of its pairs' scores and of what its last pair's delay is
worth. So the plans make a conditional random field whose probabilities are exact (structured
attention over the others, arXiv 1702.00887); what counts how much is learned. A pair whose cells
the agent knows, since it was told or sees them, is scored by what both would walk in the learned
model; that is the same for all who know as much, whoever of the two asks, and whatever number an
agent has. A partner whose cell it does not know is scored by a recurrent network of the agent's own
senses, task by task. Neither the number of agents nor that of tasks is built in.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from iwm.agents.grid.imagination import Imagination
from iwm.agents.grid.messages import SLOTS, Heard
from iwm.agents.grid.world import Sight, cell_of, pair_numbers

SEEN = 13
"""Numbers of an (agent, task) pair that come from the agent's own senses."""
_LATE = (-3, 8)
_PAIR = _LATE[1] - _LATE[0] + 8
"""Numbers of a (pair, task) triple whose cells are known."""
_FAR = 1_000
_DELAYS = 6


def nearness(steps: Tensor, size: int) -> Tensor:
    """Steps as the network gets them: 0 across half the grid, 1 for four fewer."""
    return (size - steps) / 4


def senses(sight: Sight, imagination: Imagination, target: Tensor) -> Tensor:
    """What an agent knows by itself about every task: ``[B, N, K, SEEN]``.

    Args:
        sight: what it sees.
        imagination: tells how far away tasks are.
        target: int64 ``[B, N]``, the task it went for last; -1 for none.
    """
    size = imagination.size
    games, agents = target.shape
    count = sight.tasks.shape[1]
    cell = cell_of(sight.position, size)
    steps = imagination.steps[cell[..., None], cell_of(sight.tasks, size)[:, None]]
    shape = (games, agents, count)
    own = (sight.position.float() / size)[:, :, None].expand(*shape, 2)
    place = (sight.tasks.float() / size)[:, None].expand(*shape, 2)
    # How near other agents in view are to the task: [B, N (who sees), N (who is seen), K].
    theirs = (sight.others[:, :, :, None] - sight.tasks[:, None, None]).abs().sum(-1)
    seen = sight.visible[..., None]
    close = torch.where(seen, nearness(theirs, size), 0.0).amax(2)
    meet = torch.maximum(theirs, steps[:, :, None])
    meeting = torch.where(seen, nearness(meet, size), 0.0).amax(2)
    who = torch.linspace(0, 1, agents)[None, :, None].expand(shape)
    return torch.stack(
        (
            *own.unbind(-1),
            *place.unbind(-1),
            *(place - own).unbind(-1),
            nearness(steps, size),
            (target[..., None] == torch.arange(count)).float(),
            close,
            meeting,
            (steps == 0).float(),
            who,
            torch.full(shape, sight.clock / (2 * size)),
        ),
        -1,
    )


def others_bits(bits: Tensor | None, shape: tuple[int, int]) -> Tensor:
    """The bits of the others ``[B, N, SLOTS]``; 0 where there is none."""
    games, agents = shape
    slots = torch.zeros(games, agents, SLOTS)
    if bits is None:
        return slots
    others = [[j for j in range(agents) if j != i] for i in range(agents)]
    return torch.cat((bits[:, others], slots[..., agents - 1 :]), -1)


@dataclass(frozen=True)
class Ahead:
    """What agents imagine of pairs at work. ``O`` is 1 where all know the same, else ``N``."""

    features: Tensor
    """``[B, O, P, K, _PAIR]`` of every pair and task."""
    known: Tensor
    """bool ``[B, O, P]``: whether both cells are known."""
    delay: Tensor
    """int64 ``[B, O, Q]``: moves that the last pair of a pairing needs beyond that of the best."""
    certain: Tensor
    """bool ``[B, O, Q]``: whether all cells of a pairing are known."""


def look_ahead(sight: Sight, heard: Heard, imagination: Imagination) -> Ahead:
    """Imagine how all pairs get to all tasks, from where their agents are believed to be.

    Args:
        sight: what agents see.
        heard: what they were told.
        imagination: the learned model.
    """
    size = imagination.size
    agents = sight.position.shape[1]
    number, (left, right), of_pairing = pair_numbers(agents)
    if heard.plans is None:
        seen = torch.where(sight.visible, cell_of(sight.others, size), -1)
        itself = torch.eye(agents, dtype=torch.bool)
        cell = torch.where(itself, cell_of(sight.position, size)[:, :, None], seen)
    else:
        cell = heard.plans.start[:, None]
    tasks = cell_of(sight.tasks, size)
    steps = imagination.steps[cell.clamp(min=0)[..., None], tasks[:, None, None]]
    known = (cell >= 0)[..., left] & (cell >= 0)[..., right]
    one, other = steps[:, :, left], steps[:, :, right]
    last = torch.maximum(one, other)
    # Nobody is at work before the best of its own pairs, nor the team before all are.
    soonest = torch.where(known, last.amin(-1), _FAR)
    pairs_of = number[~torch.eye(agents, dtype=torch.bool)].view(agents, agents - 1)
    best = soonest[..., pairs_of].amin(-1)
    bound = torch.where(best < _FAR, best, 0).amax(-1)
    late = (last - bound[..., None, None]).clamp(*_LATE) - _LATE[0]
    agreed = torch.zeros(2, *last.shape)
    if heard.plans is not None:
        claim = (heard.plans.end[..., None] == tasks[:, None]).float()
        sure = claim * heard.plans.confidence[..., None]
        agreed = torch.stack([(what[:, left] + what[:, right])[:, None] for what in (claim, sure)])
    place = (sight.tasks.float() / size)[:, None, None].expand(*last.shape, 2)
    rest = torch.stack(
        (
            nearness(last, size),
            nearness(one + other, 2 * size),
            *agreed,
            *place.unbind(-1),
            torch.full(last.shape, sight.clock / (2 * size)),
        ),
        -1,
    )
    ends = soonest[..., of_pairing].amax(-1)
    return Ahead(
        torch.cat((F.one_hot(late, _LATE[1] - _LATE[0] + 1).float(), rest), -1),
        known,
        ends - ends.amin(-1, keepdim=True),
        known[..., of_pairing].all(-1),
    )


@dataclass(frozen=True)
class Choice:
    """What the network says in one round."""

    scores: Tensor
    """``[B, N, P, K]``: every agent's, of all pairs and tasks."""
    last: Tensor
    """``[B, O, Q]``: what the delay of the last pair is worth, of all pairings."""
    bit: Tensor
    """``[B, N]``: the logit of the bit."""
    memory: Tensor
    """``[B, N, K, width]``."""

    def best(self) -> tuple[Tensor, Tensor]:
        """The own task in the joint plan of the highest score, and its probability.

        Returns:
            Task int64 ``[B, N]``, and the probability ``[B, N]`` that it has beside that partner.
        """
        agents = self.scores.shape[1]
        _, _, of_pairing = pair_numbers(agents)
        plan = (self.scores.amax(-1)[..., of_pairing].sum(-1) + self.last).argmax(-1)  # [B, N]
        pair = self._own()[torch.arange(agents), plan]
        index = pair[..., None, None].expand(-1, -1, 1, self.scores.shape[-1])
        task = self.scores.gather(2, index)[:, :, 0].argmax(-1)
        return task, self.log_likelihood(pair, task).exp()

    def log_likelihood(self, pair: Tensor, task: Tensor) -> Tensor:
        """Of working in a pair int64 ``[B, N]`` at a task int64 ``[B, N]``: ``[B, N]``."""
        _, _, of_pairing = pair_numbers(self.scores.shape[1])
        worth = self.scores.logsumexp(-1)
        plans = (worth[..., of_pairing].sum(-1) + self.last).log_softmax(-1)  # [B, N, Q]
        with_it = self._own()[None] == pair[..., None]
        partner = plans.masked_fill(~with_it, -torch.inf).logsumexp(-1)
        index = pair[..., None, None].expand(-1, -1, 1, self.scores.shape[-1])
        tasks = self.scores.gather(2, index)[:, :, 0].log_softmax(-1)
        return partner + tasks.gather(-1, task[..., None])[..., 0]

    def _own(self) -> Tensor:
        """Every agent's pair in every pairing: int64 ``[N, Q]``."""
        agents = self.scores.shape[1]
        _, members, of_pairing = pair_numbers(agents)
        mine = (members[:, of_pairing] == torch.arange(agents)[:, None, None, None]).any(1)
        return (of_pairing * mine).sum(-1)


class Policy(nn.Module):
    """Senses and what was heard -> scores of joint plans.

    Args:
        width: of all layers.
    """

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.width = width
        self.enter = nn.Linear(SEEN + SLOTS, width)
        self.cell = nn.GRUCell(width, width)
        self.alone = nn.Sequential(nn.Linear(3 * width, width), nn.ReLU(), nn.Linear(width, 1))
        self.together = nn.Sequential(nn.Linear(_PAIR, width), nn.ReLU(), nn.Linear(width, 1))
        self.delay = nn.Sequential(nn.Linear(_DELAYS, width), nn.ReLU(), nn.Linear(width, 1))
        self.speak = nn.Linear(2 * width, 1)

    def forward(self, seen: Tensor, bits: Tensor, ahead: Ahead, memory: Tensor | None) -> Choice:
        """One round.

        Args:
            seen: features ``[B, N, K, SEEN]``.
            bits: ``[B, N, SLOTS]``.
            ahead: what is imagined of pairs.
            memory: of the round before; ``None`` in the first.
        """
        shape = seen.shape[:3]
        slots = bits[:, :, None].expand(*shape, SLOTS)
        entered = self.enter(torch.cat((seen, slots), -1)).relu().flatten(0, 2)
        before = None if memory is None else memory.flatten(0, 2)
        now = self.cell(entered, before).view(*shape, self.width)
        board = torch.cat((now.mean(2), now.amax(2)), -1)
        task = torch.cat((now, board[:, :, None].expand(-1, -1, shape[2], -1)), -1)
        alone = self.alone(task)[..., 0]
        # Pairs of others of whom nothing is known are all alike.
        _, members, _ = pair_numbers(shape[1])
        mine = (members == torch.arange(shape[1])[:, None, None]).any(1)[None, ..., None]
        unknown = torch.where(mine, alone[:, :, None], 0.0)
        known = self.together(ahead.features)[..., 0]
        scores = torch.where(ahead.known[..., None], known, unknown)
        worth = self.delay(torch.eye(_DELAYS))[:, 0]
        last = torch.where(ahead.certain, worth[ahead.delay.clamp(max=_DELAYS - 1)], 0.0)
        return Choice(scores, last, self.speak(board)[..., 0], now)

    @torch.no_grad()
    def find_voice(self, logit: Tensor) -> None:
        """Scale the bit so that it says something before anything is learned.

        Fresh layers give nearly the same logit wherever an agent is: all would say the same, or
        what noise there is, and listeners learn to listen to nothing, after which no gradient
        comes back to the speakers. Initialised by data (arXiv 1602.07868), half of the agents say
        1, and which half depends on what they see.

        Args:
            logit: of agents in some games, of the layer as it is.
        """
        spread = logit.std().clamp(min=1e-6)
        self.speak.weight.div_(spread)
        self.speak.bias.sub_(logit.mean()).div_(spread)

"""The network that every agent of every arm runs: which task to go for, and one bit to say.

One small recurrent cell per (agent, task) pair, the same weights for all pairs; pairs of an agent
meet in a mean and a maximum. So neither the number of agents nor that of tasks is built in.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from iwm.agents.grid.imagination import Imagination
from iwm.agents.grid.messages import HEARD, SLOTS, Heard, nearness
from iwm.agents.grid.world import Sight, cell_of

SEEN = 13
"""Numbers of an (agent, task) pair that come from the agent's own senses."""


def senses(sight: Sight, imagination: Imagination, target: Tensor) -> tuple[Tensor, Tensor]:
    """What an agent knows by itself about every task.

    Args:
        sight: what it sees.
        imagination: tells how far away tasks are.
        target: int64 ``[B, N]``, the task it went for last; -1 for none.

    Returns:
        Features ``[B, N, K, SEEN]``, and imagined steps int64 ``[B, N, K]``.
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
    features = torch.stack(
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
    return features, steps


@dataclass(frozen=True)
class Choice:
    """What the network says in one round."""

    logits: Tensor
    """``[B, N, K]``: over the tasks."""
    bit: Tensor
    """``[B, N]``: the logit of the bit."""
    memory: Tensor
    """``[B, N, K, width]``."""


class Policy(nn.Module):
    """Senses and what was heard -> a task.

    Args:
        width: of all layers.
    """

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.width = width
        self.enter = nn.Linear(SEEN + HEARD + SLOTS, width)
        self.cell = nn.GRUCell(width, width)
        self.score = nn.Sequential(nn.Linear(3 * width, width), nn.ReLU(), nn.Linear(width, 1))
        self.speak = nn.Linear(2 * width, 1)

    def forward(self, seen: Tensor, heard: Heard, memory: Tensor | None) -> Choice:
        """One round.

        Args:
            seen: features ``[B, N, K, SEEN]``.
            heard: of the messages.
            memory: of the round before; ``None`` in the first.
        """
        shape = seen.shape[:3]
        slots = heard.slots[:, :, None].expand(*shape, SLOTS)
        entered = self.enter(torch.cat((seen, heard.pairs, slots), -1)).relu().flatten(0, 2)
        before = None if memory is None else memory.flatten(0, 2)
        now = self.cell(entered, before).view(*shape, self.width)
        board = torch.cat((now.mean(2), now.amax(2)), -1)
        pair = torch.cat((now, board[:, :, None].expand(-1, -1, shape[2], -1)), -1)
        return Choice(self.score(pair)[..., 0], self.speak(board)[..., 0], now)

"""What agents tell each other, and what a receiver makes of it.

The arms differ in nothing else. All of them fill the same inputs of the same network; what an arm
does not tell stays zero:

* ``silent``: nothing;
* ``bit``: one bit an agent and round, whose meaning is learned;
* ``intention``: the imagined way to the task that the agent goes for, as
  :class:`~iwm.agents.intention.IntentionCompressor` compresses it: at most 49 bytes of text;
* ``full``: where the agent is, what it goes for and how sure it is, uncompressed: the upper bound.

A message of one round is heard in the next.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from iwm.agents.codec import TrajectoryCodec
from iwm.agents.grid.imagination import Imagination
from iwm.agents.grid.world import Sight, cell_of
from iwm.agents.intention import IntentionCompressor

Arm = Literal["silent", "bit", "intention", "full"]
ARMS: tuple[Arm, ...] = get_args(Arm)

_KINDS = 6
HEARD = 2 * _KINDS
"""Numbers of an (agent, task) pair that come from messages."""
SLOTS = 15
"""Other agents whose bits can be told apart."""


@dataclass(frozen=True)
class Heard:
    """What an agent makes of the messages of the last round."""

    pairs: Tensor
    """``[B, N, K, HEARD]``."""
    slots: Tensor
    """``[B, N, SLOTS]``: the others' bits, -1 or 1; 0 where there is none."""


@dataclass(frozen=True)
class Plans:
    """What the others are believed to be about, as one round's messages say."""

    start: Tensor
    """int64 ``[B, N, 2]``: where the way begins."""
    end: Tensor
    """int64 ``[B, N, 2]``: where it ends."""
    confidence: Tensor
    """``[B, N]``."""


class IntentionBook:
    """Writes and reads intentions; equal plans give equal texts, so each is made once.

    Args:
        imagination: imagines the ways.
    """

    LEVELS = 2
    """Confidence is told as none, half or whole."""

    def __init__(self, imagination: Imagination) -> None:
        self.imagination = imagination
        size = imagination.size
        edge = [float(size - 1)] * 2
        codec = TrajectoryCodec.cosine(horizon=imagination.horizon, low=[0.0, 0.0], high=edge)
        self._compressor = IntentionCompressor(codec)
        self.texts: list[str] = []
        """Every intention so far, once."""
        self._read = torch.full((size**2, size**2, self.LEVELS + 1, 5), -1.0)

    def write(self, cell: Tensor, goal: Tensor, confidence: Tensor) -> list[str]:
        """The messages of agents in cells ``[M]`` that go for the cells ``goal [M]``."""
        ways = self.imagination.imagine(cell, goal).float().numpy()
        size = self.imagination.size
        places = zip((goal % size).tolist(), (goal // size).tolist(), strict=True)
        return [
            self._compressor.compress(way, place, how)
            for way, place, how in zip(ways, places, confidence.tolist(), strict=True)
        ]

    def exchange(self, cell: Tensor, goal: Tensor, confidence: Tensor) -> Tensor:
        """Compress plans and read them again.

        Args:
            cell: int64 ``[B, N]``, where the sender is.
            goal: int64 ``[B, N]``, where it goes.
            confidence: ``[B, N]`` in [0, 1].

        Returns:
            ``[B, N, 5]``: column and row of the start, of the goal, and the confidence, as read.
        """
        level = (confidence * self.LEVELS).round().long()
        missing = self._read[cell, goal, level, 0] < 0
        if bool(missing.any()):
            keys = torch.stack((cell[missing], goal[missing], level[missing]), -1)
            here, there, how = torch.unique(keys, dim=0).unbind(-1)
            texts = self.write(here, there, how / self.LEVELS)
            self.texts += texts
            self._read[here, there, how] = self.read(texts)
        return self._read[cell, goal, level]

    def read(self, texts: list[str]) -> Tensor:
        """Column and row of the start, of the goal, and the confidence, as told: ``[M, 5]``."""
        told = []
        for text in texts:
            intention = self._compressor.decompress(text)
            assert intention.trajectory is not None
            assert isinstance(intention.goal, tuple)
            start = np.clip(np.round(intention.trajectory[0]), 0, self.imagination.size - 1)
            told.append([*start.tolist(), *intention.goal, intention.confidence or 0.0])
        return torch.tensor(told)


def nearness(steps: Tensor, size: int) -> Tensor:
    """Steps as the network gets them: 0 across half the grid, 1 for four fewer."""
    return (size - steps) / 4


def hear(
    plans: Plans | None, bits: Tensor | None, tasks: Tensor, steps: Tensor, size: int
) -> Heard:
    """What every agent makes of the others' messages.

    Args:
        plans: of the round before; ``None``: nothing was said of plans.
        bits: ``[B, N]``, -1 or 1; ``None``: no bits.
        tasks: int64 ``[B, K, 2]``.
        steps: int64 ``[B, N, K]``, the hearer's own imagined way to every task.
        size: cells along a side.
    """
    games, agents, count = steps.shape
    pairs = torch.zeros(games, agents, count, HEARD)
    slots = torch.zeros(games, agents, SLOTS)
    if bits is not None:
        others = [[j for j in range(agents) if j != i] for i in range(agents)]
        slots = torch.cat((bits[:, others], slots[..., agents - 1 :]), -1)
    if plans is not None:
        # [B, N (sender), K]: does it go for the task, and how far is it from there by now?
        claim = (plans.end[:, :, None] == tasks[:, None]).all(-1)
        away = (plans.start[:, :, None] - tasks[:, None]).abs().sum(-1)
        near = nearness(away, size)
        alone = torch.stack(
            (claim.float(), claim * near, claim * plans.confidence[..., None], near), -1
        )
        # With the hearer, [B, N (hearer), N (sender), K]: when could both be there?
        meet = nearness(torch.maximum(away[:, None], steps[:, :, None]), size)
        both = torch.stack((meet, claim[:, None] * meet), -1)
        told = torch.cat((alone[:, None].expand(-1, agents, -1, -1, -1), both), -1)
        told = told * ~torch.eye(agents, dtype=torch.bool)[:, :, None, None]
        pairs = torch.cat((told.amax(2), told.sum(2) / 4), -1)
    return Heard(pairs, slots)


class Channel:
    """One arm's way to talk.

    Args:
        arm: which.
        book: writes and reads intentions.
    """

    def __init__(self, arm: Arm, book: IntentionBook) -> None:
        self.arm, self.book, self.size = arm, book, book.imagination.size

    def plans(self, sight: Sight, target: Tensor, confidence: Tensor) -> Plans | None:
        """What is told of plans in a round.

        Args:
            sight: what the senders see.
            target: int64 ``[B, N]``, the task each goes for.
            confidence: ``[B, N]`` of that choice.
        """
        if self.arm in ("silent", "bit"):
            return None
        goal = goal_of(sight, target)
        if self.arm == "full":
            return Plans(sight.position, goal, confidence)
        cell, to = cell_of(sight.position, self.size), cell_of(goal, self.size)
        told = self.book.exchange(cell, to, confidence.detach())
        ends = told[..., :4].long()
        return Plans(ends[..., :2], ends[..., 2:], told[..., 4])

    def bits(self, logit: Tensor, *, training: bool) -> Tensor | None:
        """The bits said, -1 or 1 ``[B, N]``; gradients pass as through a hyperbolic tangent.

        While training the logits get logistic noise, so that a bit is tried both ways (DIAL,
        arXiv 1605.06676).
        """
        if self.arm != "bit":
            return None
        if training:
            uniform = torch.rand_like(logit).clamp(1e-6, 1 - 1e-6)
            logit = logit + uniform.logit()
        soft = torch.tanh(logit / 2)
        hard = torch.where(logit < 0, -1.0, 1.0)
        return hard + soft - soft.detach()


def goal_of(sight: Sight, target: Tensor) -> Tensor:
    """Cells int64 ``[B, N, 2]`` of targets."""
    return sight.tasks.gather(1, target[..., None].expand(-1, -1, 2))

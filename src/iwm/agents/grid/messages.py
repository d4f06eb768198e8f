"""What agents tell each other, and what a receiver makes of it.

The arms differ in nothing else: all of them have the same network, for which what an arm does not
tell is unknown or zero:

* ``silent``: nothing;
* ``bit``: one bit an agent and round, whose meaning is learned;
* ``intention``: the imagined way to the task that the agent goes for, as
  :class:`~iwm.agents.intention.IntentionCompressor` compresses it: at most 49 bytes of text;
* ``full``: where the agent is, what it goes for and how sure it is, uncompressed: the upper bound.

A message of one round is heard by all in the next, by the sender too: what everybody knows that
everybody has heard is what they can agree on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from iwm.agents.codec import TrajectoryCodec
from iwm.agents.grid.imagination import Imagination
from iwm.agents.grid.world import Sight, cell_of
from iwm.agents.intention import IntentionCompressor

Arm = Literal["silent", "bit", "intention", "full"]
ARMS: tuple[Arm, ...] = get_args(Arm)

SLOTS = 15
"""Other agents whose bits can be told apart."""


@dataclass(frozen=True)
class Plans:
    """What one round's messages say that agents are about."""

    start: Tensor
    """int64 ``[B, N]``: the cell where the way begins."""
    end: Tensor
    """int64 ``[B, N]``: the cell where it ends."""
    confidence: Tensor
    """``[B, N]``."""

    def a_step_later(self, imagination: Imagination) -> Plans:
        """The same plans after their first steps: a message is a round old when it is heard."""
        first = imagination.action[self.start, self.end]
        return Plans(imagination.after[self.start, first], self.end, self.confidence)


@dataclass(frozen=True)
class Heard:
    """What all agents have of the messages of the round before."""

    plans: Plans | None
    """As of now; ``None``: nobody tells plans."""
    bits: Tensor | None
    """``[B, N]``, -1 or 1; ``None``: nobody says bits."""


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
        self._read = torch.full((size**2, size**2, self.LEVELS + 1, 3), -1.0)

    def write(self, cell: Tensor, goal: Tensor, confidence: Tensor) -> list[str]:
        """The messages of agents in cells ``[M]`` that go for the cells ``goal [M]``."""
        ways = self.imagination.imagine(cell, goal).float().numpy()
        size = self.imagination.size
        places = zip((goal % size).tolist(), (goal // size).tolist(), strict=True)
        return [
            self._compressor.compress(way, place, how)
            for way, place, how in zip(ways, places, confidence.tolist(), strict=True)
        ]

    def exchange(self, cell: Tensor, goal: Tensor, confidence: Tensor) -> Plans:
        """Compress plans and read them again.

        Args:
            cell: int64 ``[B, N]``, where the sender is.
            goal: int64 ``[B, N]``, where it goes.
            confidence: ``[B, N]`` in [0, 1].
        """
        level = (confidence * self.LEVELS).round().long()
        missing = self._read[cell, goal, level, 0] < 0
        if bool(missing.any()):
            keys = torch.stack((cell[missing], goal[missing], level[missing]), -1)
            here, there, how = torch.unique(keys, dim=0).unbind(-1)
            texts = self.write(here, there, how / self.LEVELS)
            self.texts += texts
            self._read[here, there, how] = self.read(texts)
        start, end, sure = self._read[cell, goal, level].unbind(-1)
        return Plans(start.long(), end.long(), sure)

    def read(self, texts: list[str]) -> Tensor:
        """Start cell, goal cell and confidence, as told: ``[M, 3]``.

        The plan is a picture of the way, some cells off here and there. The reader imagines the
        ways to the goal from everywhere, and takes the one that the picture is nearest to.
        """
        size = self.imagination.size
        said = [self._compressor.decompress(text) for text in texts]
        goals, ways_told = [], []
        for intention in said:
            assert isinstance(intention.goal, tuple)
            assert intention.trajectory is not None
            ways_told.append(torch.from_numpy(intention.trajectory))
            column, row = intention.goal
            goals.append(int(row) * size + int(column))
        told = torch.zeros(len(texts), 3)
        everywhere = torch.arange(size**2)
        for goal in sorted(set(goals)):
            which = [one for one, at in enumerate(goals) if at == goal]
            ways = self.imagination.imagine(everywhere, torch.full_like(everywhere, goal))
            pictures = torch.stack([ways_told[one] for one in which])
            apart = torch.cdist(pictures.flatten(1), ways.flatten(1).float())
            told[which, 0] = apart.argmin(1).float()
            told[which, 1] = float(goal)
            told[which, 2] = torch.tensor([said[one].confidence or 0.0 for one in which])
        return told


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
        cell = cell_of(sight.position, self.size)
        goal = cell_of(goal_of(sight, target), self.size)
        if self.arm == "full":
            return Plans(cell, goal, confidence.detach())
        return self.book.exchange(cell, goal, confidence.detach())

    def bits(self, logit: Tensor) -> Tensor | None:
        """The bits said, -1 or 1 ``[B, N]``; gradients pass as through a hyperbolic tangent.

        Receivers' gradients reach the speakers, as in DIAL (arXiv 1605.06676), but without its
        noise: a bit that is said at random while training is one that nobody learns to heed.
        """
        if self.arm != "bit":
            return None
        soft = torch.tanh(logit)
        hard = torch.where(logit < 0, -1.0, 1.0)
        return hard + soft - soft.detach()


def goal_of(sight: Sight, target: Tensor) -> Tensor:
    """Cells int64 ``[B, N, 2]`` of targets."""
    return sight.tasks.gather(1, target[..., None].expand(-1, -1, 2))

"""One batch over several processes: which rows are here, and figures over all of them.

A model is handed a :class:`Part` before each step. Two rules make the number of processes
invisible, gradients included (they are averaged over processes):

* a mean over rows is a mean of the local rows times :meth:`Part.weight`;
* a figure that is no mean (variance, covariance, SIGReg, a rank) is computed, alike in every
  process, from rows that :meth:`Part.gather` brought together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed


@dataclass(frozen=True)
class Part:
    """The rows of a global batch that one process holds: a run of them, in order of rank."""

    rank: int
    sizes: tuple[int, ...]
    """Rows of every process."""

    @classmethod
    def whole(cls, rows: int) -> Part:
        """All rows in one process."""
        return cls(0, (rows,))

    @property
    def world(self) -> int:
        """Number of processes."""
        return len(self.sizes)

    @property
    def total(self) -> int:
        """Rows of the global batch."""
        return sum(self.sizes)

    @property
    def rows(self) -> slice:
        """Where this process's rows stand in the global batch."""
        begin = sum(self.sizes[: self.rank])
        return slice(begin, begin + self.sizes[self.rank])

    def weight(self, here: int, everywhere: int) -> float:
        """Factor of a mean over ``here`` of ``everywhere`` rows.

        The mean over processes of the weighted values, and of their gradients, is the value
        and the gradient of the mean over all rows.
        """
        return here * self.world / everywhere

    def gather(self, rows: Tensor) -> Tensor:
        """All processes' rows in global order: [sizes[rank], ...] -> [total, ...].

        What is computed from the result must be the same in every process; then gradients
        averaged over processes are those of the whole batch in one process.
        """
        if self.world == 1:
            return rows
        gathered: Tensor = _Gather.apply(rows, self)
        return gathered

    def spread(self, count: int) -> Tensor:
        """Mark ``count`` rows of the global batch, evenly spread: bool [sizes[rank]].

        Which global rows are marked does not depend on the number of processes, and each
        process has its share of them to within one row.
        """
        places = torch.arange(self.rows.start, self.rows.stop + 1) * count // self.total
        return places[1:] > places[:-1]


class _Gather(torch.autograd.Function):
    """All-gather whose gradient is the local slice, times the number of processes.

    The gradient of a value that every process computes alike is the same everywhere, so no
    process need ask another for it. The factor undoes the averaging over processes.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, part: Part) -> Tensor:
        ctx.part = part
        # Collectives want equal shapes: pad to the largest part, cut after.
        largest = max(part.sizes)
        padded = rows.new_zeros(largest, *rows.shape[1:])
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in part.sizes]
        distributed.all_gather(parts, padded)
        return torch.cat([piece[:size] for piece, size in zip(parts, part.sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient[ctx.part.rows] * ctx.part.world, None

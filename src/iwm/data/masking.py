"""Block masks on the token grid: a union of rectangles is hidden from the source."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from iwm.data.config import MaskConfig

_ATTEMPTS = 20


@dataclass(frozen=True)
class TokenMask:
    """Token indices (int64): ``visible`` [B, K] is encoded, ``hidden`` [B, M] predicted.

    Within a batch K and M are equal for all rows (rows are cut to the smallest count, as
    in I-JEPA), so some tokens of a row may be in neither.
    """

    visible: Tensor
    hidden: Tensor

    def rows(self, index: slice | Tensor) -> TokenMask:
        """The masks of some of the rows."""
        return TokenMask(self.visible[index], self.hidden[index])

    def to(self, device: torch.device) -> TokenMask:
        """The same masks on another device."""
        return TokenMask(self.visible.to(device), self.hidden.to(device))


def sample_masks(
    n: int, grid: tuple[int, int], config: MaskConfig, generator: torch.Generator
) -> TokenMask:
    """Draw n masks on a ``grid`` (rows, columns) of tokens.

    The rectangles' shape is drawn once per batch, their places once per row.
    """
    rows, columns = grid
    area, aspect = torch.rand(2, generator=generator).tolist()
    wanted = (config.area[0] + (config.area[1] - config.area[0]) * area) * rows * columns
    low, high = (math.log(value) for value in config.aspect)
    height = min(rows, max(1, round(math.sqrt(wanted * math.exp(low + (high - low) * aspect)))))
    width = min(columns, max(1, round(wanted / height)))

    hidden = torch.zeros(n, rows, columns, dtype=torch.bool)
    redo = torch.ones(n, dtype=torch.bool)
    for _ in range(_ATTEMPTS):
        drawn = _unions(int(redo.sum()), grid, (height, width), config.blocks, generator)
        hidden[redo] = drawn
        redo = hidden.float().mean(dim=(1, 2)) > config.max_share
        if not redo.any():
            break
    else:
        # The configured blocks nearly always hide too much: keep one block for the rest.
        hidden[redo] = _unions(int(redo.sum()), grid, (height, width), 1, generator)

    flat = hidden.view(n, -1)
    # A random order within visible and hidden tokens: which ones are cut is random too.
    order = torch.rand(flat.shape, generator=generator)
    keep = int((~flat).sum(1).min())
    predict = int(flat.sum(1).min())
    visible = (order + 2.0 * flat).argsort(1)[:, :keep].sort(1).values
    targets = (order + 2.0 * ~flat).argsort(1)[:, :predict].sort(1).values
    return TokenMask(visible, targets)


def _unions(
    n: int,
    grid: tuple[int, int],
    block: tuple[int, int],
    blocks: int,
    generator: torch.Generator,
) -> Tensor:
    """Unions [n, rows, columns] of ``blocks`` rectangles of one shape, each somewhere."""
    covered = torch.zeros(n, *grid, dtype=torch.bool)
    for _ in range(blocks):
        inside = []
        for size, length in zip(grid, block, strict=True):
            start = torch.randint(size - length + 1, (n, 1), generator=generator)
            position = torch.arange(size)
            inside.append((position >= start) & (position < start + length))
        covered |= inside[0].unsqueeze(2) & inside[1].unsqueeze(1)
    return covered

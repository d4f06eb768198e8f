"""The transformer of the token dynamics: space within a frame, then time behind each position.

Blocks alternate between attention among the positions of one frame and attention of each
position to itself in earlier frames, as in Genie's ST-transformer (arXiv 2402.15391). So what
a frame's features hold depends on that frame and earlier ones alone, and a new frame costs one
frame's work: only the keys and values of the time blocks are kept.

The action enters every block through adaptive LayerNorm (DiT, arXiv 2212.09748), and in space
blocks also as a bias on where to look: turning moves the whole picture, and a bias by relative
position that the action chooses can say so in one step of learning.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Pair = tuple[Tensor, Tensor]
"""Keys and values of earlier frames, [B, N, heads, P, width / heads]."""


@dataclass(frozen=True)
class Past:
    """What is kept of earlier frames: the last one's code vectors [B, d, h, w], and keys and
    values of each block.
    """

    before: Tensor
    pairs: tuple[Pair, ...]

    def twice(self) -> Past:
        """Of all rows, and once more of all rows."""
        pairs = tuple((torch.cat([k, k]), torch.cat([v, v])) for k, v in self.pairs)
        return Past(torch.cat([self.before, self.before]), pairs)

    def first(self, rows: int) -> Past:
        """Of the first rows."""
        return Past(self.before[:rows], tuple((k[:rows], v[:rows]) for k, v in self.pairs))


class Block(nn.Module):
    """What both kinds share: modulated attention and MLP over tokens [B, T, N, D]."""

    def __init__(self, width: int, heads: int, mlp_ratio: float, dropout: float) -> None:
        super().__init__()
        hidden = round(width * mlp_ratio)
        self.heads, self.dropout = heads, dropout
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
        self.modulation = nn.Linear(width, 6 * width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, condition: Tensor, past: Pair | None) -> tuple[Tensor, Pair]:
        """Tokens after the block.

        Args:
            x: [B, T, N, D].
            condition: [B, T, 1, D].
            past: of the frames before these, for a time block.

        Returns:
            Tokens, and the keys and values of all frames, ``past`` included (space blocks: of
            nothing).
        """
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(condition).chunk(6, dim=-1)
        batch, length, count, width = x.shape
        qkv = self.qkv(self.norm1(x) * (1 + scale1) + shift1)
        q, k, v = qkv.view(batch, length, count, 3, self.heads, -1).unbind(3)
        mixed, pair = self.attend(q, k, v, condition, past)
        mixed = self.out(mixed.reshape(batch, length, count, width))
        x = x + (1 + gate1) * F.dropout(mixed, self.dropout, self.training)
        changed = self.mlp(self.norm2(x) * (1 + scale2) + shift2)
        return x + (1 + gate2) * F.dropout(changed, self.dropout, self.training), pair

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, condition: Tensor, past: Pair | None
    ) -> tuple[Tensor, Pair]:
        """Mixed values [B, T, N, heads, d] of queries, keys and values of that shape."""
        raise NotImplementedError


class SpaceBlock(Block):
    """Attention among the positions of each frame, biased by relative position and action."""

    places: Tensor

    def __init__(
        self, width: int, heads: int, mlp_ratio: float, dropout: float, grid: tuple[int, int]
    ) -> None:
        super().__init__(width, heads, mlp_ratio, dropout)
        rows, columns = grid
        row, column = (
            torch.arange(rows * columns) // columns,
            torch.arange(rows * columns) % columns,
        )
        down = row[:, None] - row + rows - 1
        across = column[:, None] - column + columns - 1
        self.register_buffer("places", down * (2 * columns - 1) + across, persistent=False)
        self.look = nn.Linear(width, heads * (2 * rows - 1) * (2 * columns - 1))
        nn.init.zeros_(self.look.weight)
        # Half of the heads begin by looking near by.
        away = torch.stack(
            torch.meshgrid(
                torch.arange(1 - rows, rows), torch.arange(1 - columns, columns), indexing="ij"
            )
        )
        near = -0.5 * away.square().sum(0).flatten().float()
        bias = torch.zeros(heads, near.numel())
        bias[: (heads + 1) // 2] = near.clamp_min(-4.0)
        self.look.bias.data.copy_(bias.flatten())

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, condition: Tensor, past: Pair | None
    ) -> tuple[Tensor, Pair]:
        """See :meth:`Block.attend`."""
        del past
        batch, length, count, heads, size = q.shape
        table = self.look(F.silu(condition)).view(batch, length, heads, -1)
        bias = table[..., self.places].flatten(0, 1)
        flat = (batch * length, count, heads, size)
        q, k, v = (part.reshape(flat).transpose(1, 2) for part in (q, k, v))
        weights = torch.baddbmm(
            bias.flatten(0, 1),
            q.flatten(0, 1),
            k.flatten(0, 1).transpose(1, 2),
            alpha=size**-0.5,
        ).softmax(-1)
        mixed = (weights @ v.flatten(0, 1)).view(batch * length, heads, count, size)
        nothing = q.new_zeros(0)
        return mixed.transpose(1, 2).reshape(batch, length, count, heads, size), (nothing, nothing)


class TimeBlock(Block):
    """Attention of each position to itself, now and in the ``context - 1`` frames before."""

    def __init__(
        self, width: int, heads: int, mlp_ratio: float, dropout: float, context: int
    ) -> None:
        super().__init__(width, heads, mlp_ratio, dropout)
        self.distance = nn.Parameter(torch.zeros(heads, context))

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, condition: Tensor, past: Pair | None
    ) -> tuple[Tensor, Pair]:
        """See :meth:`Block.attend`."""
        del condition
        q, k, v = (part.permute(0, 2, 3, 1, 4) for part in (q, k, v))  # [B, N, heads, T, d]
        if past is not None:
            k, v = torch.cat([past[0], k], dim=3), torch.cat([past[1], v], dim=3)
        length, keys, context = q.shape[3], k.shape[3], self.distance.shape[1]
        now = torch.arange(keys - length, keys, device=q.device)
        back = now[:, None] - torch.arange(keys, device=q.device)
        bias = self.distance[:, back.clamp(0, context - 1)]
        bias = bias.masked_fill((back < 0) | (back >= context), float("-inf"))
        weights = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5 + bias).softmax(-1)
        return (weights @ v).permute(0, 3, 1, 2, 4), (k, v)

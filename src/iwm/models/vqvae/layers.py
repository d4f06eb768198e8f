"""Layers of the tokenizer: residual convolutions, self-attention, GroupNorm."""

from __future__ import annotations

from math import gcd

from torch import Tensor, nn
from torch.nn import functional as F


def group_norm(channels: int, groups: int) -> nn.GroupNorm:
    """GroupNorm of at most ``groups`` groups, as many as divide the channels."""
    return nn.GroupNorm(gcd(channels, groups), channels, eps=1e-6)


class Residual(nn.Module):
    """Two 3x3 convolutions, each after GroupNorm and SiLU; begins as the identity."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm1 = group_norm(channels, groups)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm2 = group_norm(channels, groups)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> the same shape."""
        changed = self.conv1(F.silu(self.norm1(x)))
        changed = self.conv2(F.silu(self.norm2(changed)))
        after: Tensor = x + changed
        return after


class Attention(nn.Module):
    """Self-attention among all positions of a feature map; begins as the identity."""

    def __init__(self, channels: int, heads: int, groups: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = group_norm(channels, groups)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)
        nn.init.zeros_(self.out.weight)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> the same shape."""
        batch, channels, rows, columns = x.shape
        flat = self.norm(x).permute(0, 2, 3, 1).reshape(batch, rows * columns, channels)
        q, k, v = (
            self.qkv(flat).view(batch, rows * columns, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        )
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        mixed = self.out(mixed.reshape(batch, rows * columns, channels))
        after: Tensor = x + mixed.view(batch, rows, columns, channels).permute(0, 3, 1, 2)
        return after

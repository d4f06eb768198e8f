"""A training step of I-JEPA (Assran et al., arXiv 2301.08243), written plainly from the paper.

Section 3: a target encoder, the exponential moving average of the context encoder, encodes
the whole image; four target blocks (15 to 20 % of the image, aspect 0.75 to 1.5) are cut from
its layer-normed output; the context is one large block (85 to 100 %) without the targets; a
predictor fills each target block from the context and mask tokens with positions. The
released code's smooth-L1 distance is the loss.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from iwm.models.config import IWMConfig

TARGETS = 4
MOMENTUM = 0.996


def blocks(width: int, heads: int, mlp_ratio: float, depth: int) -> nn.ModuleList:
    """timm's transformer blocks."""
    from timm.models.vision_transformer import Block

    return nn.ModuleList(Block(width, heads, mlp_ratio, qkv_bias=True) for _ in range(depth))


def pick(tokens: Tensor, index: Tensor) -> Tensor:
    """The same places of every row: [B, N, D] at [K] -> [B, K, D]."""
    return tokens[:, index]


class ViT(nn.Module):
    """Patches, fixed positions, blocks, norm; encodes the places asked for."""

    def __init__(self, config: IWMConfig) -> None:
        super().__init__()
        shape, (rows, columns) = config.encoder, config.grid
        self.patch = nn.Conv2d(3, shape.width, shape.patch, stride=shape.patch)
        self.position = nn.Parameter(0.02 * torch.randn(1, rows * columns, shape.width))
        self.blocks = blocks(shape.width, shape.heads, shape.mlp_ratio, shape.depth)
        self.norm = nn.LayerNorm(shape.width)

    def forward(self, images: Tensor, places: Tensor | None = None) -> Tensor:
        """[B, 3, H, W] -> [B, K, D]."""
        tokens = self.patch(images).flatten(2).transpose(1, 2) + self.position
        if places is not None:
            tokens = pick(tokens, places)
        for block in self.blocks:
            tokens = block(tokens)
        normed: Tensor = self.norm(tokens)
        return normed


class IJEPA(nn.Module):
    """Context encoder, target encoder and predictor of a given IWM's shapes."""

    def __init__(self, config: IWMConfig) -> None:
        super().__init__()
        shape, (rows, columns) = config.predictor, config.grid
        self.grid = (rows, columns)
        self.context = ViT(config)
        self.target = copy.deepcopy(self.context).requires_grad_(False)
        self.embed = nn.Linear(config.encoder.width, shape.width)
        self.position = nn.Parameter(0.02 * torch.randn(1, rows * columns, shape.width))
        self.mask_token = nn.Parameter(torch.zeros(1, 1, shape.width))
        depth = config.predictor_depth
        self.blocks = blocks(shape.width, shape.heads, shape.mlp_ratio, depth)
        self.norm = nn.LayerNorm(shape.width)
        self.head = nn.Linear(shape.width, config.encoder.width)

    def _block(self, area: tuple[float, float], aspect: tuple[float, float]) -> Tensor:
        """A random rectangle of the grid: bool [rows, columns]."""
        rows, columns = self.grid
        size, shape = torch.rand(2).tolist()
        tokens = (area[0] + (area[1] - area[0]) * size) * rows * columns
        low, high = math.log(aspect[0]), math.log(aspect[1])
        height = min(rows, max(1, round(math.sqrt(tokens * math.exp(low + (high - low) * shape)))))
        width = min(columns, max(1, round(tokens / height)))
        top = int(torch.randint(rows - height + 1, ()))
        left = int(torch.randint(columns - width + 1, ()))
        inside = torch.zeros(rows, columns, dtype=torch.bool)
        inside[top : top + height, left : left + width] = True
        return inside

    def forward(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of uint8 images [B, 1, 3, H, W]."""
        images = batch.images[:, 0] / 255
        masks = [self._block((0.15, 0.2), (0.75, 1.5)) for _ in range(TARGETS)]
        seen = self._block((0.85, 1.0), (1.0, 1.0)) & ~torch.stack(masks).any(0)
        if not seen.any():
            seen[0, 0] = True
        places = seen.flatten().nonzero().squeeze(1).to(images.device)
        with torch.no_grad():
            whole = self.target(images)
            whole = F.layer_norm(whole, whole.shape[-1:])
        context = self.embed(self.context(images, places)) + pick(self.position, places)
        losses = []
        for mask in masks:
            hidden = mask.flatten().nonzero().squeeze(1).to(images.device)
            queries = (self.mask_token + pick(self.position, hidden)).expand(len(images), -1, -1)
            tokens = torch.cat([context, queries], dim=1)
            for block in self.blocks:
                tokens = block(tokens)
            predicted = self.head(self.norm(tokens[:, len(places) :]))
            losses.append(F.smooth_l1_loss(predicted, pick(whole, hidden)))
        return torch.stack(losses).mean(), {}

    @torch.no_grad()
    def after_step(self) -> None:
        """Move the target encoder."""
        own, others = list(self.target.parameters()), list(self.context.parameters())
        torch._foreach_lerp_(own, others, 1 - MOMENTUM)

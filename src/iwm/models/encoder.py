"""The image encoder: a timm VisionTransformer that can skip hidden tokens."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from iwm.errors import ModelError
from iwm.models.action_config import ActionConfig
from iwm.models.config import IWMConfig


class ConvStem(nn.Module):
    """Strided convolutions to the token grid; takes the place of timm's PatchEmbed.

    [B, 3, H, W] -> [B, N, width] with N = (H / patch) * (W / patch); ``patch`` is a power
    of two. Early convolutions learn faster than one linear map (arXiv 2106.14881).
    """

    def __init__(self, img_size: Any, patch_size: int, in_chans: int, embed_dim: int, **_: Any):
        super().__init__()
        steps = patch_size.bit_length() - 1
        if 2**steps != patch_size:
            raise ModelError(f"model.encoder.patch {patch_size} is not a power of two (conv stem)")
        self.grid_size = tuple(size // patch_size for size in img_size)
        self.num_patches = self.grid_size[0] * self.grid_size[1]
        layers: list[nn.Module] = []
        channels = in_chans
        for step in range(steps):
            wider = max(24, embed_dim >> (steps - 1 - step))
            layers += [
                nn.Conv2d(channels, wider, 3, stride=2, padding=1, bias=False),
                nn.GroupNorm(1, wider),
                nn.GELU(),
            ]
            channels = wider
        self.layers = nn.Sequential(*layers, nn.Conv2d(channels, embed_dim, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Tokens [B, N, width]."""
        tokens: Tensor = self.layers(images)
        return tokens.flatten(2).transpose(1, 2)


class Encoder(nn.Module):
    """Normalised images -> CLS and patch latents.

    timm is imported here, at the first construction: it takes seconds.
    """

    def __init__(self, config: IWMConfig | ActionConfig) -> None:
        super().__init__()
        from timm.models.vision_transformer import VisionTransformer

        shape = config.encoder
        stem: dict[str, Any] = {"embed_layer": ConvStem} if shape.stem == "conv" else {}
        self.vit = VisionTransformer(
            img_size=config.image_size,
            patch_size=shape.patch,
            embed_dim=shape.width,
            depth=shape.depth,
            num_heads=shape.heads,
            mlp_ratio=shape.mlp_ratio,
            num_classes=0,
            global_pool="",
            **stem,
        )
        if shape.stem == "patch":
            # Blocks read tokens through LayerNorm, which forgets their scale. A bias beside the
            # content keeps a patch's brightness visible as a direction.
            nn.init.normal_(self.vit.patch_embed.proj.bias, std=0.5)
        self.width, self._pool = shape.width, shape.pool
        if shape.pool == "flat":
            rows, columns = config.grid
            kept = shape.readout_channels or shape.width
            self.squeeze = nn.Linear(shape.width, kept) if shape.readout_channels else nn.Identity()
            self.readout = nn.Linear(rows * columns * kept, shape.width)
        self._grid, self._patch = config.grid, shape.patch
        self._blank_pixels = shape.stem == "conv"
        self._checkpointing = shape.activation_checkpointing
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(config.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config.std).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor, visible: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Encode float images [B, 3, H, W] in (about) [0, 1].

        Args:
            images: the frames.
            visible: token indices [B, K] to encode; ``None`` encodes all N.

        Returns:
            CLS [B, D] and patches [B, K, D], as the final LayerNorm leaves them.
        """
        images = (images - self.mean) / self.std
        if visible is not None and self._blank_pixels:
            images = images * self._pixel_mask(visible, len(images))
        tokens = self.vit._pos_embed(self.vit.patch_embed(images))
        if visible is not None:
            index = torch.cat([torch.zeros_like(visible[:, :1]), visible + 1], dim=1)
            tokens = take(tokens, index)
        tokens = self.vit.norm_pre(tokens)
        for block in self.vit.blocks:
            if self._checkpointing and self.training:
                tokens = checkpoint(block, tokens, use_reentrant=False)
            else:
                tokens = block(tokens)
        tokens = self.vit.norm(tokens)
        cls, patches = tokens[:, 0], tokens[:, 1:]
        if self._pool == "cls+mean":
            cls = cls + patches.mean(dim=1)
        elif self._pool == "flat":
            cls = self.readout(self._in_place(self.squeeze(patches), visible).flatten(1))
        return cls, patches

    def _in_place(self, patches: Tensor, visible: Tensor | None) -> Tensor:
        """Visible patches [B, K, D] at their places among all N; zeros elsewhere."""
        if visible is None:
            return patches
        rows, columns = self._grid
        whole = patches.new_zeros(len(patches), rows * columns, patches.shape[-1])
        return whole.scatter(1, visible.unsqueeze(-1).expand_as(patches), patches)

    @property
    def blocks(self) -> nn.Sequential:
        """The transformer blocks."""
        blocks: nn.Sequential = self.vit.blocks
        return blocks

    def _pixel_mask(self, visible: Tensor, batch: int) -> Tensor:
        rows, columns = self._grid
        seen = torch.zeros(batch, rows * columns, device=visible.device)
        seen = seen.scatter(1, visible, 1.0).view(batch, 1, rows, columns)
        return seen.repeat_interleave(self._patch, 2).repeat_interleave(self._patch, 3)

    def load_timm(self, path: str) -> None:
        """Start from a local safetensors file of a timm ViT of the same shape.

        Its image size may be another: position embeddings of a square grid of tokens are
        resampled (bicubic, antialiased) to this model's grid.

        Raises:
            ModelError: the file is missing, unreadable, or of another shape.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            weights = load_file(Path(path))
        except (OSError, SafetensorError) as error:
            raise ModelError(f"{path}: cannot be read as safetensors: {error}") from None
        weights = {key: value for key, value in weights.items() if not key.startswith("head.")}
        places = weights.get("pos_embed")
        own: Tensor = self.vit.state_dict()["pos_embed"]
        if places is not None and places.shape != own.shape:
            weights["pos_embed"] = self._resampled(places)
        load_state(self.vit, weights, path)

    def _resampled(self, places: Tensor) -> Tensor:
        """Position embeddings [1, 1 + n * n, D] on this grid: [1, 1 + N, D]; others as they are."""
        from timm.layers.pos_embed import resample_abs_pos_embed

        if places.ndim != 3 or places.shape[1] < 2:
            return places
        # timm takes the grid for a square without asking whether it is one.
        if math.isqrt(places.shape[1] - 1) ** 2 != places.shape[1] - 1:
            return places
        resampled: Tensor = resample_abs_pos_embed(places, list(self._grid))
        return resampled


def load_state(module: nn.Module, weights: dict[str, Tensor], where: str) -> None:
    """Load weights strictly; the first tensor that does not fit is named.

    Raises:
        ModelError: names the tensor and both shapes.
    """
    check_fit(module.state_dict(), weights, where)
    module.load_state_dict(weights)


def check_fit(own: dict[str, Tensor], weights: dict[str, Tensor], where: str) -> None:
    """Weights have the names and shapes of a model's own.

    Raises:
        ModelError: names the first tensor that does not fit, and both shapes.
    """
    for name, value in own.items():
        if name not in weights:
            raise ModelError(f"{where}: has no tensor {name}, which the model needs")
        if weights[name].shape != value.shape:
            raise ModelError(
                f"{where}: {name} has shape {list(weights[name].shape)}, "
                f"the model's has {list(value.shape)}"
            )
    extra = sorted(set(weights) - set(own))
    if extra:
        raise ModelError(f"{where}: holds tensor {extra[0]}, which the model does not have")


def take(tokens: Tensor, index: Tensor) -> Tensor:
    """Rows of [B, N, D] at [B, K] -> [B, K, D]."""
    return tokens.gather(1, index.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))

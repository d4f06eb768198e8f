"""VQ-VAE: a picture as a grid of tokens, and back.

Convolutional encoder and decoder with residual blocks, self-attention among the tokens'
positions and GroupNorm (van den Oord et al., arXiv 1711.00937; Esser et al., arXiv 2012.09841,
without its adversary: what is asked for is fidelity). Pixels are folded into channels at the
finest level, so that little work is done at full resolution.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from iwm.errors import ModelError
from iwm.models.encoder import load_state
from iwm.models.saving import WEIGHTS_FILE, read_config, read_weights, save_model
from iwm.models.vqvae.config import VQVAEConfig
from iwm.models.vqvae.layers import Attention, Residual, group_norm
from iwm.models.vqvae.quantiser import Quantiser
from iwm.objectives.gather import Part
from iwm.settings import parse, to_dict

NAME = "vqvae"


class Frames(Protocol):
    """What a batch must hold: ``images`` uint8 [B, T, 3, H, W]."""

    images: Tensor


class Encoder(nn.Module):
    """Pictures [B, 3, H, W] in [-1, 1] -> latents [B, d, h, w].

    One linear map of a token's own pixels joins what the convolutions make of them: principal
    components are found in a few steps, and the convolutions learn what those leave.
    """

    def __init__(self, config: VQVAEConfig) -> None:
        super().__init__()
        c, layers = config, list[nn.Module]()
        layers += [nn.PixelUnshuffle(c.stem), nn.Conv2d(3 * c.stem**2, c.channels[0], 3, padding=1)]
        for level, channels in enumerate(c.channels):
            if level:
                layers.append(nn.Conv2d(c.channels[level - 1], channels, 4, stride=2, padding=1))
            layers += [Residual(channels, c.groups) for _ in range(c.blocks)]
        last = c.channels[-1]
        if c.attention == "both":
            layers.append(Attention(last, c.heads, c.groups))
        layers += [group_norm(last, c.groups), nn.SiLU(), nn.Conv2d(last, c.quantiser.width, 1)]
        self.layers = nn.Sequential(*layers)
        self.linear = nn.Conv2d(3, c.quantiser.width, c.patch, stride=c.patch)
        # Latents of about one: smaller ones would begin in the middle of their levels.
        nn.init.normal_(self.linear.weight, std=2.0 / (3 * c.patch**2) ** 0.5)

    def forward(self, pictures: Tensor) -> Tensor:
        """See the class."""
        latents: Tensor = self.layers(pictures) + self.linear(pictures)
        return latents


class Decoder(nn.Module):
    """Code vectors [B, d, h, w] -> pictures [B, 3, H, W], about [-1, 1]; see the encoder."""

    def __init__(self, config: VQVAEConfig) -> None:
        super().__init__()
        c, layers = config, list[nn.Module]()
        last = c.channels[-1]
        layers.append(nn.Conv2d(c.quantiser.width, last, 3, padding=1))
        for level, channels in reversed(list(enumerate(c.channels))):
            layers += [Residual(channels, c.groups) for _ in range(c.decoder_blocks)]
            if level == len(c.channels) - 1 and c.attention != "none":
                layers.append(Attention(last, c.heads, c.groups))
            if level:
                layers.append(nn.Conv2d(channels, 4 * c.channels[level - 1], 1))
                layers.append(nn.PixelShuffle(2))
        first = c.channels[0]
        layers += [group_norm(first, c.groups), nn.SiLU()]
        layers += [nn.Conv2d(first, 3 * c.stem**2, 3, padding=1), nn.PixelShuffle(c.stem)]
        self.layers = nn.Sequential(*layers)
        self.linear = nn.Sequential(
            nn.Conv2d(c.quantiser.width, 3 * c.patch**2, 1), nn.PixelShuffle(c.patch)
        )

    def forward(self, vectors: Tensor) -> Tensor:
        """See the class."""
        pictures: Tensor = self.layers(vectors) + self.linear(vectors)
        return pictures


class VQVAE(nn.Module):
    """The tokenizer.

    Args:
        config: shapes, quantiser, objective.
    """

    def __init__(self, config: VQVAEConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.quantiser = Quantiser(config.quantiser)
        self.decoder = Decoder(config)
        # Convolutions and GroupNorm run faster on CPUs with the channels innermost.
        self.to(memory_format=torch.channels_last)
        self._part: Part | None = None
        self._statistics = True

    # -- what a released model does ----------------------------------------------------

    @property
    def codebook_size(self) -> int:
        """Number of different tokens."""
        return self.quantiser.codebook_size

    @property
    def grid(self) -> tuple[int, int]:
        """Token rows and columns (h, w)."""
        return self.config.grid

    @property
    def bits_per_image(self) -> float:
        """Bits that a picture's tokens take at log2(codebook size) each."""
        return self.config.bits_per_image

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Tokens int64 [B, h, w] of pictures uint8 [B, H, W, 3].

        Raises:
            ModelError: pictures of another size or kind.
        """
        tokens: Tensor = self.quantiser(self.encoder(self.pixels(images)))[1]
        return tokens

    @torch.no_grad()
    def decode(self, tokens: Tensor) -> Tensor:
        """Pictures uint8 [B, H, W, 3] of tokens int64 [B, h, w].

        Raises:
            ModelError: tokens of another grid, or outside the codebook.
        """
        return self.render(self.vectors(tokens))

    @torch.no_grad()
    def reconstruct(self, images: Tensor) -> Tensor:
        """Pictures uint8 [B, H, W, 3] through the tokens and back.

        Raises:
            ModelError: pictures of another size or kind.
        """
        return self.decode(self.encode(images))

    def vectors(self, tokens: Tensor) -> Tensor:
        """Code vectors [B, d, h, w] of tokens int64 [B, h, w].

        Raises:
            ModelError: tokens of another grid, or outside the codebook.
        """
        if tokens.ndim != 3 or tuple(tokens.shape[1:]) != self.grid:
            raise ModelError(
                f"tokens have shape {list(tokens.shape)}, the model takes "
                f"[B, {self.grid[0]}, {self.grid[1]}]"
            )
        if tokens.is_floating_point() or tokens.dtype == torch.bool:
            raise ModelError(f"tokens are {tokens.dtype}, the model takes whole numbers")
        if tokens.numel() and not 0 <= int(tokens.min()) <= int(tokens.max()) < self.codebook_size:
            raise ModelError(
                f"tokens {int(tokens.min())} to {int(tokens.max())} are outside the codebook of "
                f"{self.codebook_size}"
            )
        return self.quantiser.vectors(tokens.long()).permute(0, 3, 1, 2)

    @torch.no_grad()
    def render(self, vectors: Tensor, remainder: Tensor | None = None) -> Tensor:
        """Pictures uint8 [B, H, W, 3] of code vectors [B, d, h, w], which may lie between codes.

        Args:
            vectors: of the tokens.
            remainder: float [B, 3, H, W] to add, in units of half the range of a channel.
        """
        pictures = self.draw(vectors)
        if remainder is not None:
            pictures = pictures + remainder
        levels = (pictures + 1).mul_(127.5).round_().clamp_(0, 255)
        return levels.to(torch.uint8).permute(0, 2, 3, 1).contiguous()

    def draw(self, vectors: Tensor) -> Tensor:
        """Pictures float [B, 3, H, W], about [-1, 1], of code vectors [B, d, h, w]."""
        pictures: Tensor = self.decoder(vectors.contiguous(memory_format=torch.channels_last))
        return pictures.float()

    def pixels(self, images: Tensor) -> Tensor:
        """Pictures uint8 [B, H, W, 3] as the encoder takes them, [B, 3, H, W] in [-1, 1].

        Raises:
            ModelError: pictures of another size or kind.
        """
        height, width = self.config.image_size
        if images.ndim != 4 or images.shape[-1] != 3:
            raise ModelError(
                f"images have shape {list(images.shape)}, the model takes RGB [B, H, W, 3]"
            )
        if images.dtype != torch.uint8:
            raise ModelError(f"images are {images.dtype}, the model takes uint8")
        if tuple(images.shape[1:3]) != (height, width):
            raise ModelError(
                f"images are {images.shape[1]}x{images.shape[2]} (height x width), the model "
                f"takes {height}x{width}"
            )
        return _signed(images.permute(0, 3, 1, 2))

    # -- training ----------------------------------------------------------------------

    def before_step(self, seed: int, part: Part | None = None, *, statistics: bool = True) -> None:
        """Take note of the rows that come next.

        Args:
            seed: of the step; the tokenizer draws nothing of its own.
            part: the rows of the global batch; ``None``: all of them.
            statistics: whether the step's logs hold the codebook's use.
        """
        del seed
        self._part, self._statistics = part, statistics

    def after_step(self, progress: float) -> None:
        """Nothing to do: the codebook moved in the forward pass."""

    def blocks(self) -> list[nn.Module]:
        """The repeated parts, each of which is compiled, and sharded, as a unit."""
        layers = [*self.encoder.layers, *self.decoder.layers]
        return [layer for layer in layers if isinstance(layer, (Residual, Attention))]

    def forward(self, batch: Frames) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and logs of frames [B, T]; see :mod:`iwm.objectives.gather` for their means.

        The loss is the mean squared error of pixels in [-1, 1], plus a little of the absolute
        one, plus the quantiser's own.
        """
        part = self._part or Part.whole(len(batch.images))
        share = part.weight(len(batch.images), part.total)
        pixels = _signed(batch.images.flatten(0, 1))
        vectors, tokens, own = self.quantiser(self.encoder(pixels), part)
        error = self.decoder(vectors.contiguous(memory_format=torch.channels_last)) - pixels
        squared, absolute = error.square().flatten(1).mean(1), error.abs().mean()
        loss = squared.mean() + self.config.absolute * absolute + own
        logs = {
            "loss_squared": share * squared.mean().detach(),
            "loss_quantiser": share * own.detach(),
            # Of pixels in 0 ... 1, whose errors are half as large.
            "psnr": share * (-10 * (squared.detach() / 4).clamp_min(1e-10).log10()).mean(),
        }
        if self._statistics:
            used = F.one_hot(part.gather(tokens).flatten(), self.codebook_size).sum(0)
            chances = used / used.sum()
            logs["codebook_use"] = (used > 0).float().mean()
            logs["perplexity"] = (-chances * chances.clamp_min(1e-10).log()).sum().exp()
        return share * loss, logs

    # -- on disk -----------------------------------------------------------------------

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the released model."""
        save_model(Path(folder), NAME, to_dict(self.config), self.state_dict())

    @classmethod
    def from_pretrained(cls, folder: str | Path, *, trainable: bool = False) -> Self:
        """Load a released model, in eval mode unless it is to be trained on.

        Raises:
            ModelError: missing, damaged, newer, or of another shape or codebook than its
                config says.
        """
        folder = Path(folder)
        model = cls(model_config(read_config(folder, NAME)["settings"], str(folder)))
        load_tokenizer(model, read_weights(folder), str(folder / WEIGHTS_FILE))
        return model.train(trainable)


def load_tokenizer(model: VQVAE, weights: dict[str, Tensor], where: str) -> None:
    """Load a tokenizer's weights.

    Raises:
        ModelError: they do not fit, or were made for another codebook.
    """
    digits = weights.get("quantiser.levels")
    if digits is not None and (made := tuple(digits.tolist())) != model.quantiser.digits:
        size = int(digits.prod())
        raise ModelError(
            f"{where}: was trained with a codebook of {size} {list(made)}, the config says "
            f"{model.codebook_size} {list(model.quantiser.digits)}"
        )
    load_state(model, weights, where)


def _signed(pictures: Tensor) -> Tensor:
    """uint8 [B, 3, H, W] -> float in [-1, 1], channels innermost in memory."""
    return pictures.contiguous(memory_format=torch.channels_last).float().mul_(2 / 255).sub_(1)


def model_config(settings: dict[str, Any], where: str = "model") -> VQVAEConfig:
    """Typed settings from plain ones.

    Raises:
        ConfigError: one line per wrong key.
    """
    return parse(VQVAEConfig, settings, where)


def create(**settings: Any) -> VQVAE:
    """An untrained model from plain settings (the entry in the model registry)."""
    return VQVAE(model_config(settings))

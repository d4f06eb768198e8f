"""From latents to tokens and back: one interface over three quantisers.

The quantisers are those of ``vector-quantize-pytorch``. A token is also a tuple of *digits*:
one for a codebook, one a number for FSQ, one a bit for LFQ. A digit means something by itself,
so that a predictor may tell digits apart instead of all products of them, and may weigh the
values of one digit into the vector it expects.
"""

from __future__ import annotations

from math import prod
from typing import cast

import torch
from torch import Tensor, nn

from iwm.models.vqvae.config import QuantiserConfig
from iwm.objectives.gather import Part


class Quantiser(nn.Module):
    """A finite set of code vectors of length ``config.width``."""

    basis: Tensor
    levels: Tensor
    mean: Tensor
    covariance: Tensor
    whiten: Tensor
    begun: Tensor

    def __init__(self, config: QuantiserConfig) -> None:
        super().__init__()
        from vector_quantize_pytorch import FSQ, LFQ, VectorQuantize

        self.config = config
        self.digits, self.codebook_size = config.digits, config.codebook_size
        self.method: nn.Module
        if config.kind == "ema":
            self.method = VectorQuantize(
                dim=config.dim,
                codebook_size=config.codes,
                decay=config.decay,
                threshold_ema_dead_code=config.dead_code,
                commitment_weight=config.commitment,
                rotation_trick=False,
            )
        elif config.kind == "fsq":
            self.method = FSQ(levels=list(config.levels))
        else:
            self.method = LFQ(
                codebook_size=config.codes,
                entropy_loss_weight=config.entropy,
                commitment_loss_weight=config.commitment,
            )
        # FSQ counts its first number fastest, LFQ its last bit. Weights that were made for other
        # levels have the same shapes: `levels` is saved with them to tell.
        order = torch.tensor(self.digits)
        if config.kind == "lfq":
            basis = order.flip(0).cumprod(0).flip(0) // order
        else:
            basis = order.cumprod(0) // order
        self.register_buffer("basis", basis, persistent=False)
        self.register_buffer("levels", order)
        # Levels stand still, so latents are brought to them: left alone, all digits begin by
        # saying how bright a place is, in a few levels each, and most codes are never used.
        self.register_buffer("mean", torch.zeros(config.width))
        self.register_buffer("covariance", torch.eye(config.width))
        self.register_buffer("whiten", torch.eye(config.width))
        self.register_buffer("begun", torch.zeros((), dtype=torch.bool))

    def forward(self, latents: Tensor, part: Part | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Quantise latents [B, d, h, w]; gradients pass straight through.

        Args:
            latents: of the encoder.
            part: the rows of the global batch that these are, in training; ``None``: all.

        Returns:
            Code vectors [B, d, h, w], tokens int64 [B, h, w], and the quantiser's own loss.
        """
        batch, width, rows, columns = latents.shape
        flat = latents.float().flatten(2).transpose(1, 2)
        if self.config.kind != "ema":
            if self.training:
                self._follow(flat.detach() if part is None else part.gather(flat.detach()))
            flat = (flat - self.mean) @ self.whiten
        if self.config.kind == "fsq":
            vectors, tokens = self.method(flat)
            loss = flat.new_zeros(())
        else:
            vectors, tokens, loss = self.method(flat)
        vectors = vectors.transpose(1, 2).reshape(batch, width, rows, columns)
        return vectors, tokens.long().view(batch, rows, columns), loss.sum()

    def _follow(self, latents: Tensor) -> None:
        """Move the running mean and covariance towards those of latents [B, N, d], and with
        them the map that makes the digits independent and of unit variance (ZCA).
        """
        samples = latents.flatten(0, 1)
        share = torch.where(self.begun, 1 - self.config.decay, 1.0)
        self.mean.lerp_(samples.mean(0), share)
        away = samples - self.mean
        self.covariance.lerp_(away.T @ away / len(away), share)
        self.begun.fill_(True)
        variances, axes = torch.linalg.eigh(self.covariance)
        floor = 1e-3 * variances[-1] + 1e-8
        self.whiten.copy_(axes * variances.clamp_min(floor).rsqrt() @ axes.T)

    def vectors(self, tokens: Tensor) -> Tensor:
        """Code vectors [..., d] of tokens [...]."""
        if self.config.kind == "ema":
            return cast(Tensor, self.method.codebook)[tokens]
        return self._values(self.split(tokens))

    def split(self, tokens: Tensor) -> Tensor:
        """Digits [..., n] of tokens [...]."""
        return tokens.unsqueeze(-1) // self.basis % self.levels

    def join(self, digits: Tensor) -> Tensor:
        """Tokens [...] of digits [..., n]."""
        return (digits * self.basis).sum(-1)

    def expected(self, probabilities: list[Tensor]) -> Tensor:
        """The mean code vector [..., d] under independent digits.

        Args:
            probabilities: of each digit's values, [..., values].
        """
        if self.config.kind == "ema":
            return probabilities[0] @ cast(Tensor, self.method.codebook)
        means = [
            share @ torch.arange(values, device=share.device, dtype=share.dtype)
            for share, values in zip(probabilities, self.digits, strict=True)
        ]
        return self._values(torch.stack(means, -1))

    def distances(self, vectors: Tensor) -> list[Tensor]:
        """How far vectors [..., d] are from each digit's values, [..., values]: squared, in
        steps between levels; for a codebook, in its mean squared distance between codes.
        """
        if self.config.kind == "ema":
            codes = cast(Tensor, self.method.codebook)
            scale = 2 * codes.var(0).sum() + 1e-8
            return [
                torch.cdist(vectors.flatten(0, -2), codes).square().view(*vectors.shape[:-1], -1)
                / scale
            ]
        half = self.levels // 2 if self.config.kind == "fsq" else 0.5
        places = vectors * half + half
        return [
            (place.unsqueeze(-1) - torch.arange(values, device=vectors.device)).square()
            for place, values in zip(places.unbind(-1), self.digits, strict=True)
        ]

    def apart(self, some: Tensor, others: Tensor) -> Tensor:
        """How far vectors [..., d] are from others: squared, in the units of
        :meth:`distances`, summed over digits.
        """
        squared = (some - others).square()
        if self.config.kind == "ema":
            codes = cast(Tensor, self.method.codebook)
            return squared.sum(-1) / (2 * codes.var(0).sum() + 1e-8)
        half = self.levels // 2 if self.config.kind == "fsq" else 0.5
        return (squared * half * half).sum(-1)

    def _values(self, digits: Tensor) -> Tensor:
        """The numbers that FSQ or LFQ mean by digits, which may be fractions."""
        half = self.levels // 2 if self.config.kind == "fsq" else 0.5
        return (digits.float() - half) / half

    def extra_repr(self) -> str:
        """Kind and size."""
        return f"{self.config.kind}, {prod(self.digits)} codes"

"""Pillar 1: a causal video tokenizer, and the context that sums up what was seen so far.

Per frame: 8x8 tokens, a vector quantiser with moving-average codes, latent queries that attend
to the tokens (Perceiver IO, arXiv 2107.14795), one pooled vector. Over frames: a transformer in
which a frame attends to itself and to earlier frames of its own episode, and to nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from iwm.models.aime.codec import keep_signal
from iwm.models.aime.config import STRIDE, AIMEConfig


@dataclass(frozen=True)
class Perceived:
    """What the Perceiver makes of frames.

    ``context`` [B, T, C]; of the tokens, N a frame: ``features`` [B, T, N, d] before and
    ``codes`` after the quantiser, ``ids`` int64 [B, T, N]; ``frames`` [B, T, 3, H, W] rebuilt
    from the codes; ``next_logits`` [B, T - 1, N, V] for the next frame's ids.
    """

    context: Tensor
    features: Tensor
    codes: Tensor
    ids: Tensor
    frames: Tensor
    next_logits: Tensor


class Tokenizer(nn.Module):
    """Frames to tokens and codes, and back."""

    def __init__(self, config: AIMEConfig) -> None:
        super().__init__()
        from vector_quantize_pytorch import VectorQuantize

        p = config.perceiver_config
        self.grid = config.grid
        self.embed = nn.Conv2d(3, p.width, STRIDE, stride=STRIDE)
        self.mix = nn.Sequential(nn.GELU(), nn.Conv2d(p.width, p.width, 3, padding=1), nn.GELU())
        self.narrow = nn.Conv2d(p.width, p.token_dim, 1)
        # The commitment is the objective's: this one would give it in training mode only.
        self.quantiser = VectorQuantize(
            dim=p.token_dim,
            codebook_size=p.codebook_size,
            decay=p.decay,
            threshold_ema_dead_code=p.dead_below,
            commitment_weight=0.0,
            rotation_trick=False,
        )
        shades = nn.Conv2d(p.width, 3 * STRIDE**2, 1)
        self.back = nn.Sequential(
            nn.Conv2d(p.token_dim, p.width, 3, padding=1),
            nn.GELU(),
            shades,
            nn.PixelShuffle(STRIDE),
        )
        for part in (self.embed, self.mix, self.narrow, self.back):
            keep_signal(part)
        with torch.no_grad():
            shades.weight.mul_(0.1)  # the first frames are nearly grey

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Frames [F, 3, H, W] -> features and codes [F, N, d], ids [F, N], frames rebuilt."""
        tokens = self.narrow(self.mix(self.embed(2 * frames - 1)))
        features = tokens.flatten(2).transpose(1, 2)
        codes, ids, _ = self.quantiser(features)
        rebuilt = self.back(codes.transpose(1, 2).unflatten(2, self.grid))
        return features, codes, ids, 0.5 + 0.5 * rebuilt


class CrossBlock(nn.Module):
    """Queries attend to a memory, or to themselves; then an MLP."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.norm_memory = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.kv = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, 2 * width),
            nn.GELU(),
            nn.Linear(2 * width, width),
        )

    def forward(self, queries: Tensor, memory: Tensor, bias: Tensor | None = None) -> Tensor:
        """[F, Q, width], after the block.

        Args:
            queries: [F, Q, width].
            memory: [F, M, width].
            bias: added to the scores, broadcast to [F, heads, Q, M].
        """
        q = self.q(self.norm(queries))
        k, v = self.kv(self.norm_memory(memory)).chunk(2, dim=-1)
        q, k, v = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (q, k, v))
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        queries = queries + self.out(mixed.transpose(1, 2).flatten(-2))
        after: Tensor = queries + self.mlp(queries)
        return after


class CausalBlock(nn.Module):
    """A :class:`CrossBlock` over frames, with a learned bias by distance."""

    def __init__(self, width: int, heads: int, reach: int) -> None:
        super().__init__()
        self.block = CrossBlock(width, heads)
        self.distance_bias = nn.Parameter(torch.zeros(heads, reach))

    def forward(self, frames: Tensor, episode: Tensor) -> Tensor:
        """[B, T, width] and the number of each frame's episode [B, T] -> [B, T, width]."""
        time = torch.arange(frames.shape[1], device=frames.device)
        back = time[:, None] - time[None, :]
        reach = self.distance_bias.shape[1]
        bias = self.distance_bias[:, back.clamp(0, reach - 1)]  # [heads, T, T]
        unseen = (back < 0) | (back >= reach) | (episode[:, :, None] != episode[:, None, :])
        bias = bias.unsqueeze(0).masked_fill(unseen.unsqueeze(1), float("-inf"))
        after: Tensor = self.block(frames, frames, bias)
        return after


class CausalPerceiver(nn.Module):
    """Frames to contexts; c_t depends on frames up to t alone."""

    def __init__(self, config: AIMEConfig) -> None:
        super().__init__()
        p = config.perceiver_config
        rows, columns = config.grid
        self.tokenizer = Tokenizer(config)
        self.widen = nn.Linear(p.token_dim, p.width)
        self.position = nn.Parameter(0.02 * torch.randn(rows * columns, p.width))
        self.latents = nn.Parameter(0.5 * torch.randn(p.num_latents, p.width))
        self.cross = CrossBlock(p.width, p.heads)
        self.own = CrossBlock(p.width, p.heads)
        self.pool = nn.Sequential(
            nn.LayerNorm(p.num_latents * p.width),
            nn.Linear(p.num_latents * p.width, p.context_dim),
        )
        self.temporal = nn.ModuleList(
            CausalBlock(p.context_dim, p.heads, p.reach) for _ in range(p.temporal_layers)
        )
        self.norm = nn.LayerNorm(p.context_dim)
        self.ahead_context = nn.Linear(p.context_dim, p.width)
        self.ahead = nn.Sequential(
            nn.GELU(), nn.Linear(p.width, p.width), nn.GELU(), nn.Linear(p.width, p.codebook_size)
        )

    def forward(self, observations: Tensor, starts: Tensor) -> Perceived:
        """Perceive sequences.

        Args:
            observations: float [B, T, 3, H, W].
            starts: bool [B, T], True where a frame is the first of an episode.
        """
        batch, length = observations.shape[:2]
        features, codes, ids, frames = self.tokenizer(observations.flatten(0, 1))
        tokens = self.widen(codes) + self.position
        latents = self.cross(self.latents.expand(len(tokens), -1, -1), tokens)
        latents = self.own(latents, latents)
        context = self.pool(latents.flatten(1)).unflatten(0, (batch, length))
        episode = starts.cumsum(1)
        for block in self.temporal:
            context = block(context, episode)
        context = self.norm(context)
        tokens = tokens.unflatten(0, (batch, length))
        logits = self.ahead(tokens[:, :-1] + self.ahead_context(context[:, :-1]).unsqueeze(2))
        features, codes, ids, frames = (
            x.unflatten(0, (batch, length)) for x in (features, codes, ids, frames)
        )
        return Perceived(context, features, codes, ids, frames, logits)

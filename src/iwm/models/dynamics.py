"""Latent dynamics: a causal transformer over (latent, action) tokens, one token a frame.

The token of frame *t* carries its CLS latent; the action taken there enters every block
through adaptive LayerNorm (DiT, arXiv 2212.09748) and so reaches the keys and values that
later frames attend to. Attention reaches back over the last ``history`` frames only, with a
learned bias by distance, so a rollout of any length costs one token a step and means the same
at every position. Frame-causal attention over a short history follows DINO-WM
(arXiv 2411.04983).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from iwm.models.action_config import ActionConfig
from iwm.models.predictor import Block


@dataclass(frozen=True)
class Past:
    """Keys and values of earlier frames, one pair a block: [B, heads, P, width / heads]."""

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]

    def __len__(self) -> int:
        return self.keys[0].shape[2]

    def last(self, count: int) -> Past:
        """The last ``count`` frames alone."""
        begin = max(0, len(self) - count)
        return Past(
            tuple(key[:, :, begin:] for key in self.keys),
            tuple(value[:, :, begin:] for value in self.values),
        )

    def first(self, count: int) -> Past:
        """The first ``count`` frames alone."""
        return Past(
            tuple(key[:, :, :count] for key in self.keys),
            tuple(value[:, :, :count] for value in self.values),
        )

    def then(self, later: Past) -> Past:
        """These frames and ``later`` ones."""
        pairs = zip(self.keys, later.keys, strict=True)
        values = zip(self.values, later.values, strict=True)
        return Past(
            tuple(torch.cat(pair, dim=2) for pair in pairs),
            tuple(torch.cat(pair, dim=2) for pair in values),
        )

    def rows(self, index: Tensor) -> Past:
        """The frames of some rows of the batch, repeats allowed."""
        return Past(
            tuple(key[index] for key in self.keys), tuple(value[index] for value in self.values)
        )


class CausalBlock(nn.Module):
    """Transformer block whose queries attend to given earlier keys and to themselves."""

    def __init__(self, width: int, heads: int, mlp_ratio: float, dropout: float, history: int):
        super().__init__()
        hidden = round(width * mlp_ratio)
        self.heads, self.dropout = heads, dropout
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
        self.distance_bias = nn.Parameter(torch.zeros(heads, history))
        self.modulation = nn.Linear(width, 6 * width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def modulate(self, condition: Tensor) -> Tensor:
        """Shifts, scales and gates [..., 6 width] that a condition [..., width] asks for."""
        modulated: Tensor = self.modulation(F.silu(condition))
        return modulated

    def forward(
        self,
        tokens: Tensor,
        condition: Tensor,
        past: tuple[Tensor, Tensor] | None,
        back: Tensor,
        *,
        modulated: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens [B, Q, width] and their condition, after the block.

        Args:
            tokens: queries; each also attends to itself.
            condition: [B, Q, width] or [1, Q, width].
            past: keys and values [B, heads, P, d] of earlier frames; ``None``: the first ``P``
                tokens' own, where ``back`` has P columns.
            back: int64 [Q, P]: how many frames before query q key p stands; what is not in
                1 ... history - 1 is not attended to.
            modulated: ``condition`` is what :meth:`modulate` made of it.

        Returns:
            Tokens, and the keys and values of all of them.
        """
        batch, count, width = tokens.shape
        six = condition if modulated else self.modulate(condition)
        shift1, scale1, gate1, shift2, scale2, gate2 = six.chunk(6, dim=-1)
        q, k, v = (
            self.qkv(self.norm1(tokens) * (1 + scale1) + shift1)
            .view(batch, count, 3, self.heads, -1)
            .permute(2, 0, 3, 1, 4)
            .unbind(0)
        )
        earlier_k, earlier_v = past or (k[:, :, : back.shape[1]], v[:, :, : back.shape[1]])
        mixed = self._attend(q, k, v, earlier_k, earlier_v, back)
        mixed = self.out(mixed.transpose(1, 2).reshape(batch, count, width))
        tokens = tokens + (1 + gate1) * self._drop(mixed)
        changed = self.mlp(self.norm2(tokens) * (1 + scale2) + shift2)
        return tokens + (1 + gate2) * self._drop(changed), k, v

    def _attend(
        self, q: Tensor, k: Tensor, v: Tensor, earlier_k: Tensor, earlier_v: Tensor, back: Tensor
    ) -> Tensor:
        if not back.shape[1]:
            return v
        scale = q.shape[-1] ** -0.5
        own = (q * k).sum(-1, keepdim=True) * scale + self.distance_bias[:, :1].unsqueeze(1)
        history = self.distance_bias.shape[1]
        bias = self.distance_bias[:, back.clamp(0, history - 1)]
        bias = bias.masked_fill((back < 1) | (back >= history), float("-inf"))
        scores = torch.cat([q @ earlier_k.transpose(-1, -2) * scale + bias, own], dim=-1)
        weights = scores.softmax(dim=-1)
        return weights[..., :-1] @ earlier_v + weights[..., -1:] * v

    def _drop(self, tokens: Tensor) -> Tensor:
        return F.dropout(tokens, self.dropout, self.training)


class Dynamics(nn.Module):
    """From latents and actions to the next latents. All shapes have the batch first.

    A predicted CLS is the present one plus a learned change that starts at zero.
    """

    def __init__(self, config: ActionConfig, action_width: int) -> None:
        super().__init__()
        shape, latent = config.dynamics, config.encoder.width
        width, self.history = shape.width, config.history
        self.embed = nn.Linear(latent, width)
        # One-hot inputs are sparse: with a usual start actions would hardly differ, and the
        # dynamics would take long to notice them.
        first = nn.Linear(action_width, width)
        nn.init.normal_(first.weight)
        self.embed_action = nn.Sequential(
            first, nn.GELU(), nn.Linear(width, width), nn.LayerNorm(width)
        )
        self.blocks = nn.ModuleList(
            CausalBlock(width, shape.heads, shape.mlp_ratio, shape.dropout, config.history)
            for _ in range(shape.depth)
        )
        self.norm = nn.LayerNorm(width)
        self.cls_head = nn.Linear(width, latent)
        self.error_head = nn.Sequential(nn.Linear(width, 128), nn.GELU(), nn.Linear(128, 1))
        rows, columns = config.grid
        self.position = nn.Parameter(torch.empty(1, rows * columns, width))
        nn.init.trunc_normal_(self.position, std=0.02)
        self.embed_patches = nn.Linear(latent, width)
        self.patch_blocks = nn.ModuleList(
            Block(width, shape.heads, shape.mlp_ratio, shape.dropout, adaln=True)
            for _ in range(shape.patch_depth)
        )
        self.patch_norm = nn.LayerNorm(width)
        self.patch_head = nn.Linear(width, latent)
        for head in (self.cls_head, self.patch_head):
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)

    def forward(
        self,
        latents: Tensor,
        actions: Tensor,
        others: Tensor | None = None,
        remember: Tensor | None = None,
    ) -> tuple[Tensor, Past]:
        """A whole window at once: every frame is predicted on from its history.

        Args:
            latents: [B, T, D].
            actions: [B, T, A], taken after each frame.
            others: [B, T, M, A]: other actions to predict on with.
            remember: bool [T]: frames at which ``others`` know the history; ``None``: at none.

        Returns:
            Features [B, T, 1 + M, width] (index 0: ``actions``, with history) after the last
            norm, see :meth:`next_cls`; and the frames' keys and values.
        """
        batch, length, _ = latents.shape
        condition = self.embed_action(actions)
        tokens = self.embed(latents)
        place = torch.arange(length, device=latents.device)
        streams = 1
        if others is not None:
            streams += others.shape[2]
            extra = self.embed_action(others).transpose(1, 2).flatten(1, 2)
            condition = torch.cat([condition, extra], dim=1)
            tokens = tokens.repeat(1, streams, 1)
        back = (place[:, None] - place).repeat(streams, 1)
        forgetful = torch.ones_like(place, dtype=torch.bool) if remember is None else ~remember
        back[length:][forgetful.repeat(streams - 1)] = 0
        keys, values = [], []
        for block in self.blocks:
            tokens, k, v = block(tokens, condition, None, back)
            keys.append(k[:, :, :length])
            values.append(v[:, :, :length])
        features = self.norm(tokens).view(batch, streams, length, -1).transpose(1, 2)
        return features, Past(tuple(keys), tuple(values))

    def next_cls(self, latents: Tensor, features: Tensor) -> Tensor:
        """The next CLS [..., D] from the present one and the feature there."""
        change: Tensor = self.cls_head(features)
        return latents + change

    def conditions(self, actions: Tensor) -> tuple[Tensor, ...]:
        """What actions [n, A] ask of each block, [n, 6 width]: for steps that share few actions."""
        embedded = self.embed_action(actions)
        return tuple(block.modulate(embedded) for block in self._causal())

    def _causal(self) -> list[CausalBlock]:
        return [block for block in self.blocks if isinstance(block, CausalBlock)]

    def step(
        self,
        latent: Tensor,
        action: Tensor,
        past: Past | None = None,
        conditions: tuple[Tensor, ...] | None = None,
    ) -> tuple[Tensor, Tensor, Past]:
        """One frame on: latent [B, D], action [B, A], the frames before.

        Args:
            latent: [B, D].
            action: [B, A]; with ``conditions``, int64 [B]: rows of them.
            past: the frames before.
            conditions: see :meth:`conditions`.

        Returns:
            Feature [B, width], predicted CLS [B, D], and the past with this frame in it, as
            much of it as a next step can attend to.
        """
        reach = self.history - 1
        seen = None if past is None else past.last(reach)
        count = 0 if seen is None else len(seen)
        back = torch.arange(count, 0, -1, device=latent.device).unsqueeze(0)
        tokens = self.embed(latent).unsqueeze(1)
        condition = self.embed_action(action).unsqueeze(1) if conditions is None else None
        keys, values = [], []
        for depth, block in enumerate(self.blocks):
            pair = None if seen is None else (seen.keys[depth], seen.values[depth])
            asked = condition if conditions is None else conditions[depth][action].unsqueeze(1)
            tokens, k, v = block(tokens, asked, pair, back, modulated=conditions is not None)
            keys.append(k)
            values.append(v)
        feature = self.norm(tokens)[:, 0]
        now = Past(tuple(keys), tuple(values))
        return (
            feature,
            self.next_cls(latent, feature),
            (now if seen is None else seen.then(now)).last(reach),
        )

    def next_patches(self, feature: Tensor, patches: Tensor, action: Tensor) -> Tensor:
        """The next frame's patches [B, N, D].

        Args:
            feature: [B, width], as :meth:`step` or :meth:`forward` gives it.
            patches: [B, N, D], of the present frame.
            action: [B, A].
        """
        # What is here learned about details must not shape the latents: constants come in.
        condition = self.embed_action(action).detach()
        tokens = self.embed_patches(patches.detach()) + self.position
        tokens = torch.cat([feature.detach().unsqueeze(1), tokens], dim=1)
        for block in self.patch_blocks:
            tokens = block(tokens, condition)
        change: Tensor = self.patch_head(self.patch_norm(tokens[:, 1:]))
        return patches.detach() + change

    def log_error(self, feature: Tensor) -> Tensor:
        """Predicted log of the CLS error [...] of features [..., width], which it leaves alone."""
        error: Tensor = self.error_head(feature.detach()).squeeze(-1)
        return error

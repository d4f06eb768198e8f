"""The latent predictor: source latents and an action -> target latents.

Three ways to condition on the action (IWM, arXiv 2403.00504, section 3.2): ``feature``
joins it to the query tokens through a small MLP, ``sequence`` adds tokens of its own,
``adaln`` modulates every block, zero-initialised (DiT, arXiv 2212.09748).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from iwm.models.config import IWMConfig
from iwm.models.encoder import take
from iwm.models.thin import linear


def normalise(latents: Tensor) -> Tensor:
    """LayerNorm without parameters over the last axis: the space of all latents served."""
    return F.layer_norm(latents, latents.shape[-1:])


class Block(nn.Module):
    """Pre-norm transformer block; with ``adaln`` its norms are set by a condition."""

    def __init__(
        self, width: int, heads: int, mlp_ratio: float, dropout: float, adaln: bool
    ) -> None:
        super().__init__()
        hidden = round(width * mlp_ratio)
        self.heads, self.dropout = heads, dropout
        self.norm1 = nn.LayerNorm(width, elementwise_affine=not adaln)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=not adaln)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, width)
        )
        self.modulation: nn.Linear | None = None
        if adaln:
            self.modulation = nn.Linear(width, 6 * width)
            nn.init.zeros_(self.modulation.weight)
            nn.init.zeros_(self.modulation.bias)

    def forward(self, tokens: Tensor, condition: Tensor | None = None) -> Tensor:
        """[B, L, width] -> the same; ``condition`` [B, width] under adaln."""
        if self.modulation is None or condition is None:
            tokens = tokens + self._attend(self.norm1(tokens))
            return tokens + self._drop(self.mlp(self.norm2(tokens)))
        modulation: Tensor = self.modulation(F.silu(condition)).unsqueeze(1)
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation.chunk(6, dim=-1)
        attended = self._attend(self.norm1(tokens) * (1 + scale1) + shift1)
        # 1 + gate: a zero-initialised block is an ordinary one, not the identity, so that a
        # shallow predictor mixes tokens from the first step.
        tokens = tokens + (1 + gate1) * attended
        changed = self._drop(self.mlp(self.norm2(tokens) * (1 + scale2) + shift2))
        return tokens + (1 + gate2) * changed

    def _attend(self, tokens: Tensor) -> Tensor:
        batch, length, width = tokens.shape
        if length == 1 and not self.training:
            # A token alone attends to itself: its value is the answer, and two thirds of the
            # weights need not be read. They are what a lone prediction waits for.
            value = linear(tokens, self.qkv.weight[2 * width :], self.qkv.bias[2 * width :])
            alone: Tensor = self.out(value)
            return alone
        q, k, v = (
            self.qkv(tokens).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        )
        mixed = F.scaled_dot_product_attention(
            q, k, v, dropout_p=self.dropout if self.training else 0.0
        )
        return self._drop(self.out(mixed.transpose(1, 2).reshape(batch, length, width)))

    def _drop(self, tokens: Tensor) -> Tensor:
        return F.dropout(tokens, self.dropout, self.training)


class Predictor(nn.Module):
    """CLS (and visible patches) and an action -> predicted CLS (and queried patches).

    The CLS token is its own query: without patches the sequence is that one token (plus
    the action's under ``sequence``), so CLS-only prediction costs one token, not N.
    Predicted CLS is source CLS plus a learned change, which starts at zero.
    """

    def __init__(self, config: IWMConfig) -> None:
        super().__init__()
        shape, latent = config.predictor, config.encoder.width
        rows, columns = config.grid
        width = shape.width
        self.conditioning = shape.conditioning
        self._checkpointing = shape.activation_checkpointing
        self.embed = nn.Linear(latent, width)
        self.position = nn.Parameter(torch.empty(1, rows * columns, width))
        self.cls_position = nn.Parameter(torch.empty(1, 1, width))
        self.mask_token = nn.Parameter(torch.empty(1, 1, width))
        for parameter in (self.position, self.cls_position, self.mask_token):
            nn.init.trunc_normal_(parameter, std=0.02)
        tokens = shape.action_tokens if shape.conditioning == "sequence" else 1
        self.action_tokens = tokens
        self.embed_action: nn.Sequential | None = None
        if shape.conditioning != "none":
            self.embed_action = nn.Sequential(
                nn.Linear(config.aug_dim, width), nn.GELU(), nn.Linear(width, tokens * width)
            )
        self.join: nn.Sequential | None = None
        if shape.conditioning == "feature":
            self.join = nn.Sequential(
                nn.Linear(2 * width, width), nn.GELU(), nn.Linear(width, width)
            )
        self.blocks = nn.ModuleList(
            Block(
                width,
                shape.heads,
                shape.mlp_ratio,
                config.predictor_dropout,
                adaln=shape.conditioning == "adaln",
            )
            for _ in range(config.predictor_depth)
        )
        self.norm = nn.LayerNorm(width)
        self.cls_head = nn.Linear(width, latent)
        nn.init.zeros_(self.cls_head.weight)
        nn.init.zeros_(self.cls_head.bias)
        self.patch_head = nn.Linear(width, latent)
        self.error_head = nn.Sequential(nn.Linear(width, 128), nn.GELU(), nn.Linear(128, 1))

    def forward(
        self,
        cls: Tensor,
        action: Tensor,
        patches: Tensor | None = None,
        places: Tensor | None = None,
        queries: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """Predict the latents of the target view.

        Args:
            cls: source CLS [B, D].
            action: action vectors [B, A].
            patches: visible source patches [B, K, D], or ``None`` for CLS-only.
            places: token indices [B, K] of ``patches``; ``None``: all N in order.
            queries: token indices [B, M] to predict; ``None``: all N in order.

        Returns:
            Predicted CLS [B, D], patches [B, M, D] (``None`` without patches), and the
            predicted log of the CLS error (root mean square per dimension) [B]. The error
            head sees detached features: it learns from the predictor, not the reverse.
        """
        cls = normalise(cls)
        acted = cls.new_empty(len(cls), self.action_tokens, 0)
        if self.embed_action is not None:
            acted = self.embed_action(action).view(len(action), self.action_tokens, -1)
        sequence = [self._joined(self.embed(cls).unsqueeze(1) + self.cls_position, acted)]
        if patches is not None:
            position = self.position.expand(len(cls), -1, -1)
            here = position if places is None else take(position, places)
            there = position if queries is None else take(position, queries)
            sequence.append(self._joined(self.mask_token + there, acted))
            sequence.append(self.embed(normalise(patches)) + here)
        if self.conditioning == "sequence":
            sequence.append(acted)
        tokens = torch.cat(sequence, dim=1)
        condition = acted[:, 0] if self.conditioning == "adaln" else None
        for block in self.blocks:
            if self._checkpointing and self.training:
                tokens = checkpoint(block, tokens, condition, use_reentrant=False)
            else:
                tokens = block(tokens, condition)
        tokens = self.norm(tokens)
        log_error = self.error_head(tokens[:, 0].detach()).squeeze(-1)
        predicted = cls + self.cls_head(tokens[:, 0])
        if patches is None:
            return predicted, None, log_error
        return predicted, self.patch_head(tokens[:, 1 : 1 + sequence[1].shape[1]]), log_error

    def _joined(self, queries: Tensor, acted: Tensor) -> Tensor:
        if self.join is None:
            return queries
        both = torch.cat([queries, acted.expand(-1, queries.shape[1], -1)], dim=-1)
        joined: Tensor = self.join(both)
        return queries + joined

"""Pillar 4: the attention schema. Where the model looks, and its own prediction of that.

Bottom-up maps are those of slot attention (Locatello et al., arXiv 2006.15055): slots compete
for every position, then each slot's share is *divided* by its sum over positions (a second
softmax would flatten the maps). Predicted maps come from the step before alone. The two are
fused by their precisions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from iwm.models.aime.config import AIMEConfig
from iwm.models.aime.dynamics import shifted
from iwm.models.aime.prior import full
from iwm.objectives.attention import fuse, normalise_map

_FLOOR = 1e-8


@dataclass(frozen=True)
class Attended:
    """Attention over sequences; maps are [B, T, S, h, w], each slot's sums to one.

    ``maps`` are the fused ones and ``before`` those of the step before; ``log_bottom_up`` and
    ``log_predicted`` their sources; ``displacement`` [B, T, S, 2, h, w] is the predicted move at
    every position; ``precision_bottom_up`` and ``precision_predicted`` [B, T, S].
    """

    maps: Tensor
    before: Tensor
    log_bottom_up: Tensor
    log_predicted: Tensor
    displacement: Tensor
    precision_bottom_up: Tensor
    precision_predicted: Tensor


def over_positions(shares: Tensor) -> Tensor:
    """Slots' shares of positions [..., N, S] -> maps over positions [..., S, N].

    A map keeps its mass where it was: shares are divided by their sum over positions.
    """
    kept = shares.transpose(-1, -2) + _FLOOR
    return kept / kept.sum(-1, keepdim=True)


class SlotAttention(nn.Module):
    """Slots from positions; slot s starts from its own vector and from h_(t-1)."""

    def __init__(self, config: AIMEConfig, features: int) -> None:
        super().__init__()
        a = config.attention_config
        rows, columns = config.grid
        self.iterations = a.iterations
        self.start = nn.Parameter(torch.randn(a.num_slots, a.slot_dim))
        self.top_down = nn.Linear(config.hidden_dim, a.slot_dim)
        self.position = nn.Parameter(0.02 * torch.randn(rows * columns, features))
        self.norm_inputs = nn.LayerNorm(features)
        self.norm_slots = nn.LayerNorm(a.slot_dim)
        self.q = nn.Linear(a.slot_dim, a.slot_dim, bias=False)
        self.k = nn.Linear(features, a.slot_dim, bias=False)
        self.v = nn.Linear(features, a.slot_dim, bias=False)
        self.update = nn.GRUCell(a.slot_dim, a.slot_dim)
        self.mlp = nn.Sequential(
            nn.LayerNorm(a.slot_dim),
            nn.Linear(a.slot_dim, 2 * a.slot_dim),
            nn.ReLU(),
            nn.Linear(2 * a.slot_dim, a.slot_dim),
        )

    def forward(self, features: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Features [F, N, C] and h_(t-1) [F, H] -> slots [F, S, d], maps [F, S, N]."""
        inputs = self.norm_inputs(features + self.position)
        k, v = self.k(inputs), self.v(inputs)
        slots = self.start + self.top_down(hidden).unsqueeze(1)
        for _ in range(self.iterations):
            scores = k @ self.q(self.norm_slots(slots)).transpose(1, 2) * k.shape[-1] ** -0.5
            maps = over_positions(full(scores).softmax(dim=-1))  # slots compete
            updates = maps.to(v.dtype) @ v
            moved = self.update(updates.flatten(0, 1), slots.flatten(0, 1))
            slots = moved.view_as(slots)
            slots = slots + self.mlp(slots)
        return slots, maps


class Predictor(nn.Module):
    """The next maps, from A_(t-1), h_(t-1) and z_(t-1)."""

    def __init__(self, config: AIMEConfig) -> None:
        super().__init__()
        slots, channels = (
            config.attention_config.num_slots,
            config.attention_config.predictor_channels,
        )
        self.slots = slots
        self.state = nn.Linear(config.hidden_dim + config.latent_dim, channels)
        self.maps = nn.Conv2d(slots, channels, 3, padding=1)
        self.position = nn.Parameter(0.02 * torch.randn(channels, *config.grid))
        self.mix = nn.Conv2d(channels, channels, 3, padding=1)
        self.out = nn.Conv2d(channels, 3 * slots, 1)
        self.precision = nn.Linear(channels, slots)

    def condition(self, hidden: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """What the state says, computed at once for all steps: [..., C, 1, 1], P_p [..., S]."""
        state = self.state(torch.cat([hidden, z], dim=-1))
        precision = F.softplus(full(self.precision(F.gelu(state)))) + _FLOOR
        return state[..., None, None], precision

    def forward(self, log_before: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Log maps [B, S, h, w] and displacements [B, S, 2, h, w] one step later.

        Args:
            log_before: log maps of the step before.
            state: of :meth:`condition`, [B, C, 1, 1].
        """
        before = log_before.exp() * log_before[0, 0].numel()  # 1 where attention is even
        mixed = F.gelu(self.maps(before) + state + self.position)
        found = full(self.out(F.gelu(self.mix(mixed))))
        change, field = torch.split(found, [self.slots, 2 * self.slots], dim=1)
        return normalise_map(log_before + change), field.reshape(
            len(field), self.slots, 2, *field.shape[-2:]
        )


class AttentionSchema(nn.Module):
    """Bottom-up attention, predicted attention, and their fusion over time."""

    def __init__(self, config: AIMEConfig, features: int) -> None:
        super().__init__()
        a = config.attention_config
        self.grid = config.grid
        self.slots = SlotAttention(config, features)
        self.predictor = Predictor(config)
        self.precision = nn.Linear(a.slot_dim, 1)
        self.start_logits = nn.Parameter(0.1 * torch.randn(a.num_slots, *config.grid))
        self.start_z = nn.Parameter(torch.zeros(config.latent_dim))

    def start(self) -> Tensor:
        """Log maps before the first frame, [S, h, w]."""
        return normalise_map(self.start_logits)

    def forward(self, features: Tensor, hidden: Tensor, z: Tensor, starts: Tensor) -> Attended:
        """Attend to sequences. Only the fusion and the small predictor run step by step.

        Args:
            features: of the frames, [B, T, N, C].
            hidden: h_(t-1), [B, T, H].
            z: z_t, [B, T, D].
            starts: bool [B, T].
        """
        batch, length = starts.shape
        slots, maps = self.slots(features.flatten(0, 1), hidden.flatten(0, 1))
        log_q = full(maps).log().view(batch, length, -1, *self.grid)
        precision_q = F.softplus(full(self.precision(slots))).view(batch, length, -1) + _FLOOR
        state, precision_p = self.predictor.condition(hidden, shifted(z, self.start_z, starts))
        fresh = starts[:, :, None, None, None]
        begin = self.start().expand(batch, -1, -1, -1)
        log_map, steps = begin, []
        for t in range(length):
            log_before = torch.where(fresh[:, t], begin, log_map)
            log_p, field = self.predictor(log_before, state[:, t])
            log_map = fuse(log_q[:, t], log_p, precision_q[:, t], precision_p[:, t])
            steps.append((log_map, log_before, log_p, field))
        fused, before, log_p, fields = (torch.stack(x, dim=1) for x in zip(*steps, strict=True))
        return Attended(fused.exp(), before.exp(), log_q, log_p, fields, precision_q, precision_p)

    def step(self, maps: Tensor, hidden: Tensor, z: Tensor) -> Tensor:
        """Maps [B, S, h, w] one step on, without a frame to look at."""
        state, _ = self.predictor.condition(hidden, z)
        log_p: Tensor = self.predictor(maps.clamp_min(_FLOOR).log(), state)[0]
        return log_p.exp()

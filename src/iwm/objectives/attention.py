"""Terms of an attention schema: attention maps are distributions over positions, one a slot."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def fuse(log_q: Tensor, log_p: Tensor, precision_q: Tensor, precision_p: Tensor) -> Tensor:
    """Precision-weighted fusion of bottom-up and predicted attention, in logs.

    log A is proportional to (P_q log A_q + P_p log A_p) / (P_q + P_p), normalised over positions.

    Args:
        log_q: [..., S, H, W].
        log_p: the same shape.
        precision_q: positive [..., S].
        precision_p: positive [..., S].
    """
    share = (precision_q / (precision_q + precision_p))[..., None, None]
    return normalise_map(share * log_q + (1 - share) * log_p)


def normalise_map(scores: Tensor) -> Tensor:
    """Log-softmax over the last two axes."""
    return F.log_softmax(scores.flatten(-2), dim=-1).view_as(scores)


def attention_kl(log_q: Tensor, log_p: Tensor) -> Tensor:
    """KL(A_q || A_p), summed over positions, mean over slots and the rest."""
    return (log_q.exp() * (log_q - log_p)).sum((-2, -1)).mean()


def centre_of_mass(maps: Tensor) -> Tensor:
    """Mean position (row, column) of maps [..., H, W], from -1 to 1 each: [..., 2]."""
    height, width = maps.shape[-2:]
    rows = torch.linspace(-1, 1, height, dtype=maps.dtype, device=maps.device)
    columns = torch.linspace(-1, 1, width, dtype=maps.dtype, device=maps.device)
    return torch.stack([(maps.sum(-1) * rows).sum(-1), (maps.sum(-2) * columns).sum(-1)], dim=-1)


def displacement_loss(field: Tensor, before: Tensor, after: Tensor, inside: Tensor) -> Tensor:
    """Squared error of where attention was predicted to move; the true move is a constant.

    Args:
        field: predicted displacement at every position, [B, T, S, 2, H, W].
        before: maps that the prediction started from, [B, T, S, H, W]; they weight the field.
        after: maps one step later, the same shape.
        inside: bool [B, T]: steps inside an episode; the others do not count.
    """
    predicted = (field * before.unsqueeze(-3)).sum((-2, -1))
    moved = (centre_of_mass(after) - centre_of_mass(before)).detach()
    error = (predicted - moved).square().sum(-1).mean(-1)
    return (error * inside).sum() / inside.sum().clamp_min(1)


def slot_diversity(maps: Tensor) -> Tensor:
    """Mean squared cosine between different slots' maps [..., S, H, W]; 0: nothing shared."""
    unit = F.normalize(maps.flatten(-2), dim=-1)
    cosine = unit @ unit.transpose(-1, -2)
    slots = maps.shape[-3]
    if slots == 1:
        return cosine.sum() * 0
    apart = ~torch.eye(slots, dtype=torch.bool, device=maps.device)
    return cosine[..., apart].square().mean()

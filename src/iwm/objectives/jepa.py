"""Losses of a joint-embedding predictive model."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def prediction_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """Mean squared error per dimension against constant targets of the same shape."""
    return F.mse_loss(predicted.float(), target.detach().float())


def error_of(predicted: Tensor, target: Tensor) -> Tensor:
    """Root mean square error over the last axis: [B, D] -> [B]."""
    return (predicted.float() - target.float()).square().mean(-1).sqrt()


def error_head_loss(log_error: Tensor, predicted: Tensor, target: Tensor) -> Tensor:
    """Fit ``log_error`` [B] to the log of the error made; predictions are constants here."""
    actual = error_of(predicted.detach(), target.detach()).clamp_min(1e-6).log()
    return F.smooth_l1_loss(log_error.float(), actual)


def inverse_loss(recovered: Tensor, action: Tensor, scale: Tensor) -> Tensor:
    """Mean squared error of recovered action vectors [B, A], in units of ``scale`` [A].

    Entries with scale 0 (unused) are left out.
    """
    used = scale > 0
    return F.mse_loss(recovered.float()[:, used] / scale[used], action[:, used] / scale[used])

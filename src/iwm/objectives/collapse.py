"""Terms against representation collapse, and the figures that show it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def variance_loss(latents: Tensor, floor: float = 1.0) -> Tensor:
    """Hinge on each dimension's deviation over the batch (VICReg, arXiv 2105.04906, eq. 1).

    Args:
        latents: [B, D].
        floor: deviation below which a dimension is pushed apart.
    """
    deviation = (latents.float().var(dim=0) + 1e-4).sqrt()
    return F.relu(floor - deviation).mean()


def covariance_loss(latents: Tensor) -> Tensor:
    """Squared off-diagonal covariance of [B, D], over D (VICReg, eq. 3 and 4)."""
    centred = latents.float() - latents.float().mean(dim=0)
    covariance = centred.T @ centred / (len(latents) - 1)
    off_diagonal = covariance - torch.diag(covariance.diagonal())
    return off_diagonal.square().sum() / latents.shape[1]


def sigreg_loss(latents: Tensor, directions: Tensor, knots: int = 17, limit: float = 3.0) -> Tensor:
    """Distance of random projections from a standard normal (SIGReg, arXiv 2511.08544).

    The Epps-Pulley statistic: the weighted squared distance of the empirical
    characteristic function of each projection from exp(-t^2 / 2), weight exp(-t^2 / 2),
    integrated over [-limit, limit] by the trapezoid rule, times the batch size.

    Args:
        latents: [B, D].
        directions: [D, P]; normalised here.
        knots: points of the integral.
        limit: end of the integral.
    """
    t = torch.linspace(-limit, limit, knots, device=latents.device)
    normal = torch.exp(-t.square() / 2)
    projected = latents.float() @ F.normalize(directions, dim=0)  # [B, P]
    angles = projected.unsqueeze(-1) * t  # [B, P, knots]
    distance = (angles.cos().mean(0) - normal).square() + angles.sin().mean(0).square()
    return len(latents) * torch.trapezoid(distance * normal, t, dim=-1).mean()


@torch.no_grad()
def effective_rank(latents: Tensor) -> Tensor:
    """RankMe (arXiv 2210.02885): exp of the entropy of the singular values of [N, D].

    Latents are centred first, so that a constant offset does not count as a direction.
    """
    values = torch.linalg.svdvals(latents.float() - latents.float().mean(dim=0))
    share = values / values.sum().clamp_min(1e-12)
    return torch.exp(-(share * (share + 1e-12).log()).sum())


@torch.no_grad()
def deviation(latents: Tensor) -> Tensor:
    """Standard deviation of each dimension of [N, D] -> [D]."""
    return latents.float().std(dim=0)

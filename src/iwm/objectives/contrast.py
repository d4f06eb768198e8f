"""Contrastive terms of an action-conditioned model: which outcome, and which action.

Both score a prediction by its mean squared difference to a latent, so what they teach is the
same distance that predictions are judged by.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def squared_distance(a: Tensor, b: Tensor) -> Tensor:
    """Mean squared difference per dimension of every pair: [P, D], [F, D] -> [P, F]."""
    a, b = a.float(), b.float()
    squares = a.square().sum(-1)[:, None] + b.square().sum(-1)[None, :]
    return (squares - 2 * a @ b.T) / a.shape[-1]


def frame_contrast(predicted: Tensor, frames: Tensor, own: Tensor, sharpness: Tensor) -> Tensor:
    """InfoNCE (arXiv 1807.03748): each prediction's own outcome against all frames.

    Args:
        predicted: [P, D].
        frames: [F, D]; gradients flow into them, so outcomes move apart.
        own: int64 [P], the outcome's place among ``frames``.
        sharpness: scalar, inverse temperature.
    """
    return F.cross_entropy(-sharpness * squared_distance(predicted, frames), own)


def action_contrast(
    predicted: Tensor, outcome: Tensor, sharpness: Tensor, log_prior: Tensor | None = None
) -> Tensor:
    """Bayes' rule for the action, with the forward model as its likelihood.

    p(action | past, outcome) is proportional to p(outcome | past, action) p(action | past).
    With the policy's own habit given as ``log_prior``, a model gains nothing by predicting an
    unlikely action's outcome badly: policies hold actions, so whoever knows the last one could
    tell the next without looking at the outcome.

    Args:
        predicted: [P, 1 + M, D]: after the action taken (index 0) and after M others.
        outcome: [P, D].
        sharpness: scalar, inverse temperature.
        log_prior: [P, 1 + M], up to a constant a row; ``None``: all alike.

    Returns:
        Negative log-probability of the action taken, [P].
    """
    distance = (predicted.float() - outcome.float().unsqueeze(1)).square().mean(-1)
    scores = -sharpness * distance
    if log_prior is not None:
        scores = scores + log_prior
    truth = torch.zeros(len(scores), dtype=torch.long, device=scores.device)
    return F.cross_entropy(scores, truth, reduction="none")

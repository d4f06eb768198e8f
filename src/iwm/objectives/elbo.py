"""The terms of a variational bound with a stick-breaking mixture prior, each in closed form
or with an estimator whose error is known.

Everything here is a pure function of distributions' parameters; shapes are batch first and
every leading axis ``...`` is kept. Sources: Kumaraswamy sticks, Nalisnick and Smyth
(arXiv 1605.06197); their numerics in log space, arXiv 2410.00660; the variational bound of a
mixture's KL, Hershey and Olsen (ICASSP 2007).
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

LOG_2PI = math.log(2 * math.pi)
EULER = 0.5772156649015329
KNOTS = 64
# Below this, 1 - (1 - e^x)^(1/a) is e^x / a to within the precision of float32.
_TAIL = -15.0


def log1mexp(x: Tensor) -> Tensor:
    """log(1 - e^x) for x <= 0 without cancellation; finite, and differentiable, up to x = 0."""
    x = x.clamp_max(-torch.finfo(x.dtype).tiny)
    near = x > -math.log(2.0)
    # Each branch sees only what it is good for: an infinite slope times zero would be NaN.
    close = torch.log(-torch.expm1(torch.where(near, x, torch.full_like(x, -1.0))))
    far = torch.log1p(-torch.exp(torch.where(near, torch.full_like(x, -1.0), x)))
    return torch.where(near, close, far)


def kumaraswamy_logs(log_u: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """log v and log(1 - v) of the Kumaraswamy(a, b) variable v = (1 - u^(1/b))^(1/a).

    Args:
        log_u: logarithm of a uniform variable, below 0; broadcast against ``a`` and ``b``.
        a: positive.
        b: positive.
    """
    x = log_u / b
    tail = x < _TAIL
    body = torch.where(tail, torch.full_like(x, -1.0), x)
    log_v = log1mexp(body) / a
    log_rest = log1mexp(log_v)
    flat = torch.where(tail, x, torch.full_like(x, _TAIL))
    return (
        torch.where(tail, -torch.exp(flat) / a, log_v),
        torch.where(tail, flat - torch.log(a), log_rest),
    )


def stick_breaking(log_v: Tensor, log_rest: Tensor) -> Tensor:
    """Log weights of K components from K - 1 sticks: [..., K - 1] twice -> [..., K].

    log pi_k = log v_k + sum over j < k of log(1 - v_j); the last takes what is left.
    """
    left = F.pad(log_rest.cumsum(-1), (1, 0))
    return left + F.pad(log_v, (0, 1))


@lru_cache
def _knots() -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Logarithms of u = w^3 at Gauss-Legendre points w of (0, 1), and weights 3 w^2 dw."""
    points, weights = np.polynomial.legendre.leggauss(KNOTS)
    w = 0.5 * (points + 1)
    return tuple(3 * np.log(w)), tuple(1.5 * weights * w**2)


def expected_log_rest(a: Tensor, b: Tensor) -> Tensor:
    """L(a, b) = E[-log(1 - v)] under Kumaraswamy(a, b), by quadrature over u.

    The substitution u = w^3 softens the logarithmic end at u = 0. Truncated series, as public
    code uses them, are far off where b < 1.
    """
    logs, weights = (torch.tensor(row, dtype=a.dtype, device=a.device) for row in _knots())
    _, log_rest = kumaraswamy_logs(logs, a.unsqueeze(-1), b.unsqueeze(-1))
    return -(log_rest * weights).sum(-1)


def stick_kl(a: Tensor, b: Tensor, alpha: Tensor, log_alpha: Tensor | None = None) -> Tensor:
    """KL(Kumaraswamy(a, b) || Beta(1, alpha)), element by element.

    It is linear in alpha and log alpha, so with their expectations under a distribution of
    alpha it is the exact expected KL.

    Args:
        a: positive.
        b: positive; with ``a`` in 0.1 ... 20 the value is within 4e-4.
        alpha: E[alpha].
        log_alpha: E[log alpha]; that of a certain alpha when ``None``.
    """
    log_alpha = torch.log(alpha) if log_alpha is None else log_alpha
    return (
        (a - 1) / a * (-EULER - torch.digamma(b) - 1 / b)
        + torch.log(a)
        + torch.log(b)
        - (b - 1) / b
        - log_alpha
        + (alpha - 1) * expected_log_rest(a, b)
    )


def gamma_kl(shape: Tensor, rate: Tensor, shape0: Tensor, rate0: Tensor) -> Tensor:
    """KL(Gamma(shape, rate) || Gamma(shape0, rate0)), element by element."""
    return (
        (shape - shape0) * torch.digamma(shape)
        - torch.lgamma(shape)
        + torch.lgamma(shape0)
        + shape0 * (torch.log(rate) - torch.log(rate0))
        + shape * (rate0 - rate) / rate
    )


def gamma_moments(shape: Tensor, rate: Tensor) -> tuple[Tensor, Tensor]:
    """E[alpha] and E[log alpha] under Gamma(shape, rate)."""
    return shape / rate, torch.digamma(shape) - torch.log(rate)


def gaussian_log_prob(z: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """Log density of a diagonal normal, summed over the last axis."""
    squares = (z - mean).square() * torch.exp(-log_variance)
    return -0.5 * (squares + log_variance + LOG_2PI).sum(-1)


def gaussian_kl(mean: Tensor, log_variance: Tensor, mean0: Tensor, log_variance0: Tensor) -> Tensor:
    """KL between diagonal normals, summed over the last axis."""
    ratio = torch.exp(log_variance - log_variance0)
    apart = (mean - mean0).square() * torch.exp(-log_variance0)
    return 0.5 * (ratio + apart - 1 + log_variance0 - log_variance).sum(-1)


def mixture_joint(z: Tensor, log_pi: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """log pi_k + log N(z; mu_k, sigma_k^2).

    Args:
        z: [..., D].
        log_pi: [..., K].
        mean: [..., K, D].
        log_variance: [..., K, D].

    Returns:
        [..., K]; its logsumexp is the mixture's log density, its softmax the responsibilities.
    """
    return log_pi + gaussian_log_prob(z.unsqueeze(-2), mean, log_variance)


def mixture_kl(
    mean: Tensor,
    log_variance: Tensor,
    log_pi: Tensor,
    means: Tensor,
    log_variances: Tensor,
    samples: int = 10,
    noise: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Monte Carlo KL of diagonal normals to mixtures, with reparameterised gradients.

    Single estimates may be negative; clamping them would bias the KL and kill gradients.

    Args:
        mean: [..., D] of the posterior.
        log_variance: [..., D].
        log_pi: [..., K] of the mixture.
        means: [..., K, D].
        log_variances: [..., K, D].
        samples: drawn a posterior.
        noise: standard normal [samples, ..., D]; drawn when ``None``.

    Returns:
        Log ratios log q(z) - log p(z) [samples, ...], whose mean over the first axis is the KL,
        and responsibilities [..., K], averaged over samples.
    """
    if noise is None:
        noise = torch.randn(samples, *mean.shape, dtype=mean.dtype, device=mean.device)
    z = mean + noise * torch.exp(0.5 * log_variance)
    log_q = -0.5 * (noise.square() + log_variance + LOG_2PI).sum(-1)
    joint = mixture_joint(z, log_pi, means, log_variances)
    return log_q - joint.logsumexp(-1), joint.softmax(-1).mean(0)


def mixture_kl_bound(
    mean: Tensor, log_variance: Tensor, log_pi: Tensor, means: Tensor, log_variances: Tensor
) -> Tensor:
    """What the KL to a mixture cannot exceed: -log sum_k pi_k exp(-KL(q || N_k)), [...]."""
    each = gaussian_kl(mean.unsqueeze(-2), log_variance.unsqueeze(-2), means, log_variances)
    return -torch.logsumexp(log_pi - each, dim=-1)


def entropy(weights: Tensor) -> Tensor:
    """Entropy in nats of weights [..., K] that sum to one; 0 log 0 is 0, with slope 0.

    The true slope at 0 is infinite, and responsibilities do underflow to 0.
    """
    found: Tensor = torch.special.entr(weights.clamp_min(torch.finfo(weights.dtype).tiny)).sum(-1)
    return found


def reconstruction(predicted: Tensor, target: Tensor, sigma: float) -> Tensor:
    """Negative log likelihood of frames under N(predicted, sigma^2), summed over the last three
    axes, but for the constant (C H W) (log sigma + log(2 pi) / 2): [..., C, H, W] -> [...].
    """
    return 0.5 * ((target - predicted) / sigma).square().flatten(-3).sum(-1)


def gram_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of the cosine similarities between positions.

    Gram anchoring (DINOv3, arXiv 2508.10104): what is alike in the teacher's eyes stays alike.

    Args:
        student: features [..., N, C].
        teacher: the same shape; a constant.
    """
    one, other = (F.normalize(x, dim=-1) for x in (student, teacher.detach()))
    return F.mse_loss(one @ one.transpose(-1, -2), other @ other.transpose(-1, -2))

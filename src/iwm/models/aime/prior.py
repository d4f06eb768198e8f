"""Pillar 2: a Dirichlet process mixture of Gaussians, by stick breaking, given the past."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from iwm.models.aime.config import AIMEConfig, PriorConfig
from iwm.objectives.elbo import kumaraswamy_logs, stick_breaking

LOG_VARIANCE = (-10.0, 2.0)
STICK = (0.1, 20.0)
"""Range of a and b of the sticks: where their KL is known to 4e-4."""
GAMMA = (0.1, 100.0)
"""Range of shape and rate of the concentration's posterior."""

COMPONENTS = ("prior.own.", "prior.sticks.")
"""In a model's weights: where each component is, and how much there is of it."""

_QUIET = 0.1
"""Of a linear layer's usual start: what begins so is nearly a constant."""
_WIDE = 0.15
"""Before the bounds: the widest component's log-variance above what all share."""

How = Literal["sample", "mean", "mode"]


def full(x: Tensor) -> Tensor:
    """At least single precision: distributions are not computed in bfloat16."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def bounded(x: Tensor, low: float, high: float) -> Tensor:
    """Any number to the open interval (low, high), with a slope everywhere."""
    return low + (high - low) * torch.sigmoid(x)


def within(limits: tuple[float, float], x: Tensor) -> Tensor:
    """Any number to a positive one between two limits, evenly in logarithms."""
    low, high = limits
    return bounded(x, math.log(low), math.log(high)).exp()


def inverse(limits: tuple[float, float], value: float) -> float:
    """What :func:`within` takes to ``value``."""
    low, high = (math.log(limit) for limit in limits)
    share = (math.log(value) - low) / (high - low)
    return math.log(share / (1 - share))


def log_variance(x: Tensor) -> Tensor:
    """Any number to a log-variance within the bounds; 0 becomes 0."""
    low, high = LOG_VARIANCE
    return bounded(x + math.log(-low / high), low, high)


@dataclass(frozen=True)
class Mixture:
    """A mixture for every state: ``log_pi`` [..., K], ``mean`` and ``log_variance``
    [..., K, D]; the sticks it was broken from, ``stick_a`` and ``stick_b`` [..., K - 1]; and
    the concentration's Gamma distribution, ``alpha_shape`` and ``alpha_rate`` [...].
    """

    log_pi: Tensor
    mean: Tensor
    log_variance: Tensor
    stick_a: Tensor
    stick_b: Tensor
    alpha_shape: Tensor
    alpha_rate: Tensor

    def centre(self) -> Tensor:
        """The mixture's mean [..., D], with its gradient."""
        return (self.log_pi.exp().unsqueeze(-1) * self.mean).sum(-2)

    @torch.no_grad()
    def draw(self, how: How = "sample") -> Tensor:
        """Latents [..., D]: a sample, the mixture's mean, or its heaviest component's mean."""
        if how == "mean":
            return self.centre()
        if how == "mode":
            chosen = self.log_pi.argmax(-1)
        else:
            flat = self.log_pi.exp().flatten(0, -2)
            chosen = torch.multinomial(flat, 1).view(self.log_pi.shape[:-1])
        index = chosen[..., None, None].expand(*chosen.shape, 1, self.mean.shape[-1])
        mean = self.mean.gather(-2, index).squeeze(-2)
        if how == "mode":
            return mean
        deviation = torch.exp(0.5 * self.log_variance.gather(-2, index).squeeze(-2))
        return mean + deviation * torch.randn_like(mean)


class DPGMMPrior(nn.Module):
    """p(z_t | h_(t-1), c_(t-1)): sticks v_k ~ Kumaraswamy(a_k, b_k), Gaussian components.

    The prior of the sticks is Beta(1, alpha), alpha ~ Gamma; see :mod:`iwm.objectives.elbo`.

    A component's mean and log-variance are what all share plus its own: what can be foretold
    is learned once, from every frame, and not by each component from the frames that it won.
    """

    def __init__(self, config: AIMEConfig) -> None:
        super().__init__()
        shape, k, d = config.prior_config, config.max_components, config.latent_dim
        self.components, self.latent_dim = k, d
        hidden, context = config.hidden_dim, config.perceiver_config.context_dim
        # Each by itself: an LSTM's state starts small, and beside c would not be heard.
        self.norm_hidden, self.norm_context = nn.LayerNorm(hidden), nn.LayerNorm(context)
        self.trunk = nn.Sequential(
            nn.Linear(hidden + context, shape.width),
            nn.SiLU(),
            nn.Linear(shape.width, shape.width),
            nn.SiLU(),
        )
        self.common = nn.Linear(shape.width, 2 * d)
        self.concentration = nn.Linear(shape.width, 2)
        # Apart from the generator that all else is drawn from: whatever K is, the rest of the
        # network starts alike, and two priors can be compared in pairs.
        with torch.random.fork_rng(devices=[]):
            self.sticks = nn.Linear(shape.width, 2 * (k - 1)) if k > 1 else None
            self.own = nn.Linear(shape.width, 2 * k * d) if k > 1 else None
            self._spread(shape)
        self.log_shape0 = nn.Parameter(torch.tensor(math.log(shape.alpha_shape)))
        self.log_rate0 = nn.Parameter(torch.tensor(math.log(shape.alpha_rate)))
        with torch.no_grad():
            self.common.bias.zero_()
            self.concentration.weight.mul_(_QUIET)
            self.concentration.bias[0] = inverse(GAMMA, shape.alpha_shape)
            self.concentration.bias[1] = inverse(GAMMA, shape.alpha_rate)

    @torch.no_grad()
    def _spread(self, shape: PriorConfig) -> None:
        """Components start apart, narrow and wide, and sticks near their prior."""
        if self.own is None or self.sticks is None:
            return
        k, d = self.components, self.latent_dim
        self.own.weight.mul_(_QUIET)
        means, widths = self.own.bias[: k * d], self.own.bias[k * d :]
        means.normal_(0, shape.spread)
        widths.view(k, d).copy_(torch.linspace(_WIDE, -_WIDE, k).unsqueeze(-1).expand(k, d))
        self.sticks.weight.mul_(_QUIET)
        self.sticks.bias[: k - 1].fill_(inverse(STICK, 1.0))
        mean_alpha = shape.alpha_shape / shape.alpha_rate
        self.sticks.bias[k - 1 :].fill_(inverse(STICK, mean_alpha))

    def forward(self, hidden: Tensor, context: Tensor, how: How = "sample") -> Mixture:
        """The mixture given h [..., H] and c [..., C] of the step before.

        Args:
            hidden: [..., H].
            context: [..., C].
            how: ``sample`` draws the sticks; else they are at their means.
        """
        past = torch.cat([self.norm_hidden(hidden), self.norm_context(context)], dim=-1)
        feature = self.trunk(past)
        mean, raw = (x.unsqueeze(-2) for x in full(self.common(feature)).chunk(2, dim=-1))
        if self.own is not None:
            parts = (*feature.shape[:-1], 2, self.components, self.latent_dim)
            own_mean, own_raw = full(self.own(feature)).view(parts).unbind(-3)
            mean, raw = mean + own_mean, raw + own_raw
        a, b = self._sticks(feature)
        shape, rate = within(GAMMA, full(self.concentration(feature))).unbind(-1)
        return Mixture(
            log_pi=stick_breaking(*(_drawn(a, b) if how == "sample" else _expected(a, b))),
            mean=mean,
            log_variance=log_variance(raw),
            stick_a=a,
            stick_b=b,
            alpha_shape=shape,
            alpha_rate=rate,
        )

    def _sticks(self, feature: Tensor) -> tuple[Tensor, Tensor]:
        """a and b [..., K - 1]; a single component has none."""
        if self.sticks is None:
            none = full(feature[..., :0])
            return none, none
        a, b = within(STICK, full(self.sticks(feature))).chunk(2, dim=-1)
        return a, b

    @property
    def hyperprior(self) -> tuple[Tensor, Tensor]:
        """Shape and rate of alpha's prior, positive."""
        return self.log_shape0.exp(), self.log_rate0.exp()


def _drawn(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    eps = torch.finfo(a.dtype).eps
    return kumaraswamy_logs(torch.rand_like(a).clamp(eps, 1 - eps).log(), a, b)


def _expected(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Logarithms of E[v] = b B(1 + 1/a, b) and of 1 - E[v]."""
    log_mean = b.log() + torch.lgamma(1 + 1 / a) + torch.lgamma(b) - torch.lgamma(1 + 1 / a + b)
    log_mean = log_mean.clamp_max(-torch.finfo(a.dtype).eps)
    return log_mean, torch.log(-torch.expm1(log_mean))

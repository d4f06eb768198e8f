"""The recurrent state-space model: encoder, one step in latent space, readouts.

A latent h [L] is deterministic; each step draws a small e [Z] from a Gaussian that depends on
h and the action, and moves h on::

    pre    = W [h, a]                     prior of e: N(mu, sigma) = P relu(pre)
    h'     = h + U relu(pre + V e)

The readouts of h are linear (state, reward) or one small head (log deviation of the state's
error), so that a rollout costs two matrix products a step however wide the state is. Like the
RSSM of PlaNet and Dreamer (Hafner et al., 2019, arXiv 1811.04551), with a residual step in
place of a GRU: positions are sums of small changes, which a gate forgets. Its units are ReLUs:
what walls do has corners, which smooth units learn many times more slowly.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from iwm.models.embodied.config import EmbodiedConfig

MIN_SIGMA = 0.01
"""Smallest deviation of the stochastic latent: its divergence stays finite."""
LOG_ERROR_BOUNDS = (-6.0, 3.0)
"""Of the natural logarithm of a state's expected error, in standard deviations."""


def mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """Two hidden layers of SiLU units."""
    return nn.Sequential(
        nn.Linear(inputs, hidden),
        nn.SiLU(),
        nn.Linear(hidden, hidden),
        nn.SiLU(),
        nn.Linear(hidden, outputs),
    )


def head(inputs: int, hidden: int = 32) -> nn.Sequential:
    """One number from a latent; narrow, because every imagined step asks for it."""
    return nn.Sequential(nn.Linear(inputs, hidden), nn.SiLU(), nn.Linear(hidden, 1))


def gaussian(parameters: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation [..., Z] from [..., 2 Z] numbers."""
    mean, raw = parameters.chunk(2, -1)
    return mean, F.softplus(raw) + MIN_SIGMA


def divergence(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> Tensor:
    """KL(one || other) of diagonal Gaussians (mean, deviation) [..., Z]: nats [...]."""
    (mean, sigma), (other_mean, other_sigma) = one, other
    ratio = (sigma / other_sigma).square()
    shift = ((mean - other_mean) / other_sigma).square()
    return 0.5 * (ratio + shift - 1 - ratio.log()).sum(-1)


class Encoder(nn.Module):
    """Normalised states [..., S] to latents [..., L]: a linear map plus what an MLP adds."""

    def __init__(self, config: EmbodiedConfig) -> None:
        super().__init__()
        self.linear = nn.Linear(config.state_dim, config.latent_dim)
        self.more = mlp(config.state_dim, config.hidden_dim, config.latent_dim)
        nn.init.orthogonal_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, states: Tensor) -> Tensor:
        """Latents of states."""
        latents: Tensor = self.linear(states) + 0.1 * self.more(states)
        return latents


class Dynamics(nn.Module):
    """One step of the latent, given an action [..., A] and a draw [..., Z]."""

    def __init__(self, config: EmbodiedConfig) -> None:
        super().__init__()
        latent, hidden = config.latent_dim, config.step_dim
        self.carry = nn.Linear(latent, hidden)
        self.act = nn.Linear(config.action_dim, hidden, bias=False)
        self.prior = nn.Linear(hidden, 2 * config.stochastic_dim)
        self.draw = nn.Linear(config.stochastic_dim, hidden, bias=False)
        self.move = nn.Linear(hidden, latent)
        # A step starts at rest: random motion in directions that no readout sees would never be
        # unlearned, and add up over long rollouts.
        nn.init.zeros_(self.move.weight)
        nn.init.zeros_(self.move.bias)

    def before(self, latent: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """``pre`` [..., H] and the prior's parameters [..., 2 Z]."""
        pre = self.carry(latent) + self.act(action)
        return pre, self.prior(F.relu(pre))

    def after(self, latent: Tensor, pre: Tensor, drawn: Tensor) -> Tensor:
        """The next latent [..., L]."""
        moved: Tensor = latent + self.move(F.relu(pre + self.draw(drawn)))
        return moved


class Readouts(nn.Module):
    """What a latent says: state, reward, and how far off the state may be."""

    def __init__(self, config: EmbodiedConfig) -> None:
        super().__init__()
        self.state = nn.Linear(config.latent_dim, config.state_dim)
        self.reward = head(config.latent_dim)
        self.error = head(config.latent_dim)

    def log_error(self, latents: Tensor) -> Tensor:
        """Logarithm of the state's expected RMSE [...], in standard deviations."""
        low, high = LOG_ERROR_BOUNDS
        raw: Tensor = self.error(latents)[..., 0]
        return low + (high - low) * torch.sigmoid(raw)

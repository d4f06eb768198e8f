"""How the embodied world model learns: rollouts against what came.

Each window of T states is cut into pieces of K + 1 (K grows during training); every piece is
rolled out from its first state alone. Most rows take the prior's mean at each step, as
predictions do; the others draw from a posterior that sees the outcome, which teaches the
prior what cannot be known (the RSSM's objective).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from iwm.models.embodied.config import EmbodiedConfig
from iwm.models.embodied.dynamics import divergence, gaussian
from iwm.objectives.gather import Part

if TYPE_CHECKING:
    from iwm.models.embodied.model import Trajectories, WorldModel


class Posterior(nn.Module):
    """Parameters [..., 2 Z] of a draw that has seen the outcome; and how far training is."""

    progress: Tensor

    def __init__(self, config: EmbodiedConfig) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(config.step_dim + config.state_dim, config.hidden_dim),
            nn.SiLU(),
            nn.Linear(config.hidden_dim, 2 * config.stochastic_dim),
        )
        # Kept in checkpoints: a run that goes on rolls out as far as it did.
        self.register_buffer("progress", torch.zeros(()))

    def forward(self, pre: Tensor, outcome: Tensor) -> Tensor:
        """From the step's ``pre`` [..., H] and the next normalised state [..., S]."""
        parameters: Tensor = self.layers(torch.cat([pre, outcome], -1))
        return parameters


def rollout_length(config: EmbodiedConfig, progress: float, window: int) -> int:
    """Steps of a rollout after a share of training, geometrically growing; at most window - 1."""
    first, last = config.objective.rollout_steps
    grown: float = first * (last / first) ** min(1.0, progress / 0.75)
    return max(1, min(round(grown), window - 1))


def pieces(values: Tensor, length: int, count: int) -> Tensor:
    """[B, T, ...] cut into ``count`` pieces [B, count, length, ...], each beginning with the
    last of the one before.
    """
    cut = values.unfold(1, length, length - 1)[:, :count]
    return cut.movedim(-1, 2)


def learn(
    model: WorldModel,
    posterior: Posterior,
    batch: Trajectories,
    generator: torch.Generator,
    part: Part,
) -> tuple[dict[str, Tensor], Tensor]:
    """Terms of the loss by their names in the objective, and the first latents [B, L]."""
    config = model.config
    states = model.normalised(batch.states)
    steps = rollout_length(config, posterior.progress.item(), states.shape[1])
    count = (states.shape[1] - 1) // steps
    truth = pieces(states, steps + 1, count).flatten(0, 1)
    ends = steps * count
    actions = batch.actions[:, :ends].reshape(len(truth), steps, -1)
    rewards = (batch.rewards[:, :ends] - model.reward_mean) / model.reward_std
    share = config.objective.sampled_share
    marked = part.spread(round(share * part.total)).repeat_interleave(count)
    followed = marked.nonzero()[:, 0].to(states.device)
    # One draw for the global batch: the number of processes changes nothing.
    noise = torch.randn(part.total, count, steps, config.stochastic_dim, generator=generator)
    noise = noise[part.rows].flatten(0, 1)[marked].to(states.device)
    seen_states = truth[followed]

    latent = model.encoder(truth[:, 0])
    first = latent.view(-1, count, latent.shape[-1])[:, 0]
    along, surprises = [], []
    for step in range(steps):
        pre, parameters = model.dynamics.before(latent, actions[:, step])
        mean, sigma = gaussian(parameters)
        seen = gaussian(posterior(pre[followed], seen_states[:, step + 1]))
        drawn = torch.addcmul(seen[0], seen[1], noise[:, step])
        latent = model.dynamics.after(latent, pre, mean.index_copy(0, followed, drawn))
        along.append(latent)
        surprises.append(divergence(seen, (mean[followed], sigma[followed])))
    latents = torch.stack(along, 1)
    error = (model.readouts.state(latents) - truth[:, 1:]).square().mean(-1)
    told = model.readouts.reward(latents)[..., 0] - rewards.reshape(len(truth), steps)
    log_error = model.readouts.log_error(latents.detach())
    likelihood = 0.5 * error.detach() * (-2 * log_error).exp() + log_error
    kl = (torch.stack(surprises, 1) - config.objective.free_nats).clamp_min(0)
    weight = part.weight(len(batch.states), part.total)
    everywhere = max(1, round(share * part.total)) * count * steps
    terms = {
        "state": error.mean() * weight,
        "reward": told.square().mean() * weight,
        "error": likelihood.mean() * weight,
        "kl": kl.sum() * part.world / everywhere,
    }
    return terms, first

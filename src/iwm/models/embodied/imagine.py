"""Imagined rollouts: many at once, each following its policy, in one tight loop.

A step is a handful of small matrix products, so that Python and the dispatcher cost as much as
the arithmetic. What does not depend on the step before (the noise, the rewards and deviations)
is computed for all steps at once, and the loop of an open-loop plan is compiled.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from iwm.errors import ModelError
from iwm.models.embodied.dynamics import gaussian
from iwm.models.embodied.unrolling import unroll

if TYPE_CHECKING:
    from iwm.models.embodied.model import WorldModel

Policy = Callable[[Tensor, int, torch.Generator], Tensor]
"""``policy(states [B, n, S], step, generator) -> actions [B, n, A]``. It is asked at every step
of every rollout, with the imagined states; what it draws, it draws from ``generator``."""
Reward = Callable[[Tensor, Tensor], Tensor]
"""``reward(states [B, n, H, S], actions [B, n, H, A]) -> [B, n, H]``, in place of the model's."""


@dataclass(frozen=True)
class Imagined:
    """n rollouts of H steps from each of B states. ``states[..., k, :]`` follow
    ``actions[..., k, :]``.
    """

    latents: Tensor
    """[B, n, H, L]."""
    actions: Tensor
    """[B, n, H, A]."""
    rewards: Tensor
    """[B, n, H]."""
    returns: Tensor
    """[B, n]: discounted sums of the rewards."""
    uncertainty: Tensor
    """[B, n, H]: expected RMSE of each state, in standard deviations of the states."""
    best: Tensor
    """int64 [B]: the rollout with the highest return."""
    decoder: Callable[[Tensor], Tensor]
    """States [..., S], in their own units, of latents [..., L]."""

    @cached_property
    def states(self) -> Tensor:
        """[B, n, H, S], in their own units. Decoded when first asked for: who needs only the
        best rollouts asks :meth:`chosen`.
        """
        with torch.inference_mode():
            return self.decoder(self.latents)

    def chosen(self) -> tuple[Tensor, Tensor]:
        """States [B, H, S] and actions [B, H, A] of the best rollout of each row."""
        rows = torch.arange(len(self.best), device=self.best.device)
        with torch.inference_mode():
            return self.decoder(self.latents[rows, self.best]), self.actions[rows, self.best]


def random_plans(
    n: int,
    horizon: int,
    action_dim: int,
    *,
    discrete: bool = False,
    hold: int = 5,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Plans to choose from [n, horizon, action_dim]: each action is held for ``hold`` steps.

    Args:
        n: plans.
        horizon: steps.
        action_dim: A.
        discrete: one-hot rows, instead of uniform numbers in [-1, 1].
        hold: steps.
        generator: of the draws.
    """
    turns = -(-horizon // hold)
    if discrete:
        drawn = torch.randint(action_dim, (n, turns), generator=generator)
        actions = F.one_hot(drawn, action_dim).float()
    else:
        actions = torch.rand(n, turns, action_dim, generator=generator) * 2 - 1
    return actions.repeat_interleave(hold, 1)[:, :horizon]


@torch.inference_mode()
def imagine(
    model: WorldModel,
    state: Tensor,
    policy: Policy | Tensor | None,
    n: int,
    horizon: int,
    seed: int,
    reward: Reward | None,
) -> Imagined:
    """See :meth:`WorldModel.imagine`."""
    config, device = model.config, state.device
    batch, width = len(state), config.action_dim
    generator = torch.Generator().manual_seed(seed)
    # Common random numbers: row b's rollouts are what they would be in any other batch.
    noise = torch.randn(horizon, 1, n, config.stochastic_dim, generator=generator).to(device)
    if policy is None:
        policy = random_plans(
            n, horizon, width, discrete=bool(config.vocabulary), generator=generator
        )
    plan = None
    if isinstance(policy, Tensor):
        plan = _plan(policy.to(device), batch, n, horizon, width)
    dynamics, readouts = model.dynamics, model.readouts
    rows, shape = batch * n, (batch, n, horizon)
    noise = noise.expand(-1, batch, -1, -1).reshape(horizon, rows, -1)
    latent = model.encoder(model.normalised(state)).repeat_interleave(n, 0)
    actions: list[Tensor] = []
    if plan is not None:
        latents = unroll(dynamics, latent, plan.transpose(0, 1).contiguous(), noise)
    else:
        assert callable(policy)
        here, found = state.repeat_interleave(n, 0), []
        for step in range(horizon):
            action = _ask(policy, here.view(batch, n, -1), step, generator, width)
            actions.append(action)
            pre, prior = dynamics.before(latent, action)
            mean, sigma = gaussian(prior)
            latent = dynamics.after(latent, pre, torch.addcmul(mean, sigma, noise[step]))
            found.append(latent)
            here = model.decoded(latent)
        latents = torch.stack(found, 1)
    along = latents.view(*shape, -1)
    taken = (torch.stack(actions, 1) if plan is None else plan).view(*shape, width)
    if reward is None:
        rewards = model.rewards(along)
    else:
        rewards = reward(model.decoded(along), taken)
        if rewards.shape != shape:
            raise ModelError(
                f"reward: gave {list(rewards.shape)}, expected [B, n, H] = {list(shape)}"
            )
    weights = config.discount ** torch.arange(horizon, device=device)
    returns = rewards @ weights.to(rewards.dtype)
    uncertainty = readouts.log_error(along).exp()
    return Imagined(
        along, taken, rewards, returns, uncertainty, returns.argmax(1), decoder=model.decoded
    )


def _plan(plan: Tensor, batch: int, n: int, horizon: int, width: int) -> Tensor:
    """Open-loop actions as [B n, H, A], from [H, A], [n, H, A] or [B, n, H, A]."""
    wanted = (batch, n, horizon, width)
    if not 2 <= plan.ndim <= 4 or plan.shape != wanted[-plan.ndim :]:
        raise ModelError(
            f"policy: a plan of shape {list(plan.shape)}; expected [B, n, H, A] = {list(wanted)}, "
            f"or its last three or two dimensions"
        )
    if not plan.isfinite().all():
        raise ModelError("policy: a plan with numbers that are not finite")
    return plan.float().expand(wanted).reshape(batch * n, horizon, width)


def _ask(
    policy: Policy, states: Tensor, step: int, generator: torch.Generator, width: int
) -> Tensor:
    """The policy's actions as [B n, A]."""
    action = policy(states, step, generator)
    if action.shape != (*states.shape[:2], width):
        raise ModelError(
            f"policy: gave actions {list(action.shape)} at step {step}, expected [B, n, A] = "
            f"{[*states.shape[:2], width]}"
        )
    return action.to(states).reshape(-1, width)

"""The loop of an open-loop rollout, as TorchScript.

A step is four small products: one core is enough for them, and two threads that each roll out
half of a batch are twice as fast, if only the interpreter lets them. TorchScript runs the whole
loop without Python's lock. It must say what :class:`~iwm.models.embodied.dynamics.Dynamics`
says; a test holds it to that.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor
from torch.nn import functional as F

from iwm.models.embodied.dynamics import MIN_SIGMA, Dynamics


def _steps(
    latent: Tensor,
    actions: Tensor,
    noise: Tensor,
    carry: tuple[Tensor, Tensor],
    prior: tuple[Tensor, Tensor],
    draw: Tensor,
    move: tuple[Tensor, Tensor],
    min_sigma: float,
) -> Tensor:
    width = noise.size(2)
    latents: list[Tensor] = []
    for step in range(noise.size(0)):
        pre = torch.addmm(carry[1], torch.cat([latent, actions[step]], 1), carry[0])
        parameters = torch.addmm(prior[1], F.relu(pre), prior[0])
        sigma = F.softplus(parameters[:, width:]) + min_sigma
        drawn = torch.addcmul(parameters[:, :width], sigma, noise[step])
        moved = torch.addmm(move[1], F.relu(torch.addmm(pre, drawn, draw)), move[0])
        latent = latent + moved
        latents.append(latent)
    return torch.stack(latents, 1)


with warnings.catch_warnings():
    # Deprecated, and without a successor that needs no compiler where it runs.
    warnings.simplefilter("ignore", FutureWarning)
    _compiled = torch.jit.script(_steps)


def unroll(dynamics: Dynamics, latent: Tensor, actions: Tensor, noise: Tensor) -> Tensor:
    """Latents [N, H, L] from where N rollouts start.

    Args:
        dynamics: of the latents.
        latent: [N, L].
        actions: [H, N, A].
        noise: [H, N, Z], standard normal.
    """
    found: Tensor = _compiled(
        latent,
        actions,
        noise,
        (torch.cat([dynamics.carry.weight, dynamics.act.weight], 1).t(), dynamics.carry.bias),
        (dynamics.prior.weight.t(), dynamics.prior.bias),
        dynamics.draw.weight.t(),
        (dynamics.move.weight.t(), dynamics.move.bias),
        MIN_SIGMA,
    )
    return found

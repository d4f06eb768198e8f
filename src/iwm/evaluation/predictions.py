"""One-step predictions from states, under one action each or under all that were possible."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from iwm.evaluation.play import ActionModel, States, make_history

Given = Literal["single", "history"]
"""What the model is given beside the action: ``z_cls`` of the present frame alone, or with its
earlier frames. Patches do not change the predicted CLS."""


@dataclass(frozen=True)
class Predicted:
    """``z_cls`` [..., D]; ``error`` [...]: the root mean square error per dimension that the
    model itself expects.
    """

    z_cls: Tensor
    error: Tensor


@torch.no_grad()
def predict(
    model: ActionModel, states: States, actions: Tensor, given: Given, batch: int = 2048
) -> Predicted:
    """Predict each state under its own action [M, A]; latents on the CPU."""
    device = next(model.parameters()).device
    latents, errors = [], []
    for begin in range(0, len(states), batch):
        rows = slice(begin, begin + batch)
        history = None
        if given == "history":
            past = states.past_z[rows].to(device), states.past_action[rows].to(device)
            history = make_history(*past)
        found = model.predict(
            states.z_cls[rows].to(device), actions[rows].to(device), None, history
        )
        latents.append(found.z_cls.cpu())
        errors.append(found.log_error.exp().cpu())
    if not latents:
        return Predicted(states.z_cls[:0], states.z_cls.new_zeros(0))
    return Predicted(torch.cat(latents), torch.cat(errors))


def predict_claimed(model: ActionModel, states: States, given: Given) -> Predicted:
    """Under the action that was taken: ``z_cls`` [M, D], ``error`` [M]."""
    return predict(model, states, claimed_vectors(states), given)


def predict_every(model: ActionModel, states: States, given: Given) -> Predicted:
    """Under every possible action: ``z_cls`` [M, V, D], ``error`` [M, V]."""
    found = [predict(model, states, actions, given) for actions in states.actions.unbind(1)]
    return Predicted(
        torch.stack([one.z_cls for one in found], 1), torch.stack([one.error for one in found], 1)
    )


def claimed_vectors(states: States) -> Tensor:
    """Vectors [M, A] of the actions that were taken."""
    rows = torch.arange(len(states))
    return states.actions[rows, torch.from_numpy(states.claimed)]

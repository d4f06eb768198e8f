"""Imagination held to what was once seen: where states recur, predictions are recognised.

A rollout's error grows because each step starts from a prediction that is a little off. In a
world whose states come back, a prediction that lies near a remembered latent very likely means
that one; going on from the remembered latent starts the next step without error. Elsewhere the
prediction stays as it is. And what an action has done before the agent's own eyes is not imagined
again: who believes in a door where a wall is would run into it for ever.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from iwm.planning.dynamics import Discrete, Trajectories, WorldModel, named_vectors

_SAME = 0.1
"""Latents within this share of the radius are one state."""


@dataclass(frozen=True)
class Shown:
    """Steps that were seen: latents [S, D], int64 [S] actions of the space, latents [S, D]."""

    starts: Tensor
    actions: Tensor
    outcomes: Tensor


class RecallingDynamics:
    """A world model in one state, its predictions exchanged for remembered latents near them.

    Each step starts from the latent alone: the history of a remembered latent is not known.

    Args:
        model: rolls out latents.
        space: named actions of the model's vocabulary.
        z_cls: latent of the present state, [D].
        memory: remembered latents [M, D].
        radius: a prediction within this Euclidean distance is recognised.
        shown: steps whose outcomes are known, the latest last.

    Raises:
        ConfigError: an action that the model does not know.
    """

    def __init__(
        self,
        model: WorldModel,
        space: Discrete,
        z_cls: Tensor,
        memory: Tensor,
        radius: float,
        shown: Shown | None = None,
    ) -> None:
        self._model, self._z, self._radius = model, z_cls.reshape(1, -1), radius
        self._memory = memory.to(z_cls)
        self._vectors = named_vectors(model, space).to(z_cls.device)
        self._shown = shown

    @torch.no_grad()
    def rollout(self, actions: Tensor) -> Trajectories:
        """Candidates int64 [B, K]; a beginning that several share is imagined once."""
        count = len(self._vectors)
        node = torch.zeros(len(actions), dtype=torch.int64, device=self._z.device)
        latent, latents, errors = self._z, [], []
        for action in actions.to(self._z.device).unbind(1):
            prefix, node = torch.unique(node * count + action, return_inverse=True)
            begun, chosen = latent[prefix // count], prefix % count
            found = self._model.rollout(begun, self._vectors[chosen].unsqueeze(1))
            latent = self._as_shown(begun, chosen, self._recognise(found.z_cls[:, 0]))
            latents.append(latent[node])
            errors.append(found.log_error[:, 0][node])
        return Trajectories(torch.stack(latents, 1).float(), torch.stack(errors, 1).float())

    def _recognise(self, predicted: Tensor) -> Tensor:
        away, near = torch.cdist(predicted.float(), self._memory).min(1)
        sure = (away <= self._radius).unsqueeze(1)
        return torch.where(sure, self._memory[near], predicted)

    def _as_shown(self, begun: Tensor, actions: Tensor, predicted: Tensor) -> Tensor:
        """What came of the same action in the same state, where that was seen."""
        if self._shown is None:
            return predicted
        away = torch.cdist(begun.float(), self._shown.starts.float())
        same = (away <= _SAME * self._radius) & (actions.unsqueeze(1) == self._shown.actions)
        latest = same.int().cumsum(1).argmax(1)
        return torch.where(same.any(1).unsqueeze(1), self._shown.outcomes[latest], predicted)

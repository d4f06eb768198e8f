"""Planning with a variational recurrent world model: candidates are imagined from one state."""

from __future__ import annotations

import torch
from torch import Tensor

from iwm.errors import ConfigError
from iwm.models.aime import DPGMMVariationalRecurrentAutoencoder
from iwm.models.aime.imagine import State
from iwm.planning.dynamics import Discrete, Space, Trajectories


class ImaginedDynamics:
    """A state of the model, from ``model.observe``; a latent is z_t, the prior's mean.

    Args:
        model: in eval mode.
        space: the actions to plan over; discrete names must be in the model's vocabulary.
        state: one state (batch of 1), which a rollout does not change.

    Raises:
        ConfigError: an action that the model does not know, or several states.
    """

    def __init__(
        self, model: DPGMMVariationalRecurrentAutoencoder, space: Space, state: State
    ) -> None:
        if len(state.z) != 1:
            raise ConfigError(f"planning: {len(state.z)} states given, expected 1")
        self._model, self._space, self._state = model, space, state
        if isinstance(space, Discrete):
            unknown = [name for name in space.names if name not in model.vocabulary]
            if unknown:
                raise ConfigError(
                    f"planning: the model has no action {unknown[0]!r}; it has "
                    f"{', '.join(model.vocabulary)}"
                )
            self._ids = torch.tensor([model.vocabulary.index(name) for name in space.names])

    @torch.no_grad()
    def rollout(self, actions: Tensor) -> Trajectories:
        """Imagine int64 [B, K] (discrete) or float [B, K, C] candidates, in one batch."""
        if isinstance(self._space, Discrete):
            vectors = self._model.action_vectors(self._ids[actions.cpu()])
        else:
            none = torch.full(actions.shape[:-1], -1, dtype=torch.int64)
            vectors = self._model.action_vectors(none, actions)
        state = self._state.expand(len(actions))
        return Trajectories(self._model.imagine(state, vectors, "mean", frames=False).z)

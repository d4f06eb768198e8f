"""What planners need of a world: the action space and what sequences of actions lead to.

The seams between dynamics, cost and solver are an idea of stable-worldmodel's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from iwm.errors import ConfigError
from iwm.models.action import ActionIWM
from iwm.models.dynamics import Past


@dataclass(frozen=True)
class Discrete:
    """Named actions; a sequence is int64 [K] of positions in ``names``."""

    names: tuple[str, ...]

    def __post_init__(self) -> None:
        """Refuse an empty or ambiguous vocabulary."""
        if not self.names or len(set(self.names)) != len(self.names):
            raise ConfigError(f"planning: action names must be distinct: {list(self.names)}")

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True)
class Box:
    """Bounded continuous actions; a sequence is float32 [K, C] within the bounds."""

    low: tuple[float, ...]
    high: tuple[float, ...]

    def __post_init__(self) -> None:
        """Refuse bounds that do not bound."""
        if not self.low or len(self.low) != len(self.high):
            raise ConfigError("planning: low and high must have the same length, at least 1")
        wide = torch.tensor([self.low, self.high], dtype=torch.float64)
        if not bool(torch.isfinite(wide).all()) or bool((wide[0] >= wide[1]).any()):
            raise ConfigError("planning: bounds must be finite, low below high")

    def __len__(self) -> int:
        return len(self.low)


Space = Discrete | Box


@dataclass(frozen=True)
class Trajectories:
    """What B candidate sequences of K actions are predicted to lead to."""

    latents: Tensor
    """[B, K, D]: the latent after each action."""
    log_error: Tensor | None = None
    """[B, K]: predicted natural log of each latent's error, where the dynamics knows it."""


class Dynamics(Protocol):
    """A world in one state, which a rollout does not change."""

    def rollout(self, actions: Tensor) -> Trajectories:
        """Roll out candidates: int64 [B, K] (discrete) or float [B, K, C], in one batch."""
        ...


class WorldModel(Protocol):
    """The part of an action-conditioned model that planning uses."""

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """Action names."""
        ...

    def action_vectors(self, ids: Tensor, continuous: Tensor | None = None) -> Tensor:
        """Ids [..., ] (-1: none) and continuous entries [..., C] -> vectors [..., A]."""
        ...

    def rollout(self, z_cls: Tensor, actions: Tensor, history: Any = None) -> Any:
        """z_cls [B, D], actions [B, K, A] -> object with z_cls [B, K, D], log_error [B, K]."""
        ...


def named_vectors(model: WorldModel, space: Discrete) -> Tensor:
    """The model's vectors [n, A] of a space's actions.

    Raises:
        ConfigError: an action that the model does not know.
    """
    unknown = [name for name in space.names if name not in model.vocabulary]
    if unknown:
        raise ConfigError(
            f"planning: the model has no action {unknown[0]!r}; it has "
            f"{', '.join(model.vocabulary)}"
        )
    return model.action_vectors(
        torch.tensor([model.vocabulary.index(name) for name in space.names])
    )


class ModelDynamics:
    """A world model in one state, or one state's latent.

    Args:
        model: rolls out latents.
        space: the actions to plan over; discrete names must be in the model's vocabulary.
        z_cls: latent of the present state, [D] or [1, D].
        history: the model's history object for one state (batch of 1), or ``None``.

    Raises:
        ConfigError: an action that the model does not know.
    """

    def __init__(
        self, model: WorldModel, space: Space, z_cls: Tensor, history: Any | None = None
    ) -> None:
        self._model, self._space = model, space
        self._z = z_cls.reshape(1, -1)
        self._history = history
        if isinstance(space, Discrete):
            self._vectors = named_vectors(model, space).to(self._z.device)

    @torch.inference_mode()
    def rollout(self, actions: Tensor) -> Trajectories:
        """One batched rollout of all candidates from the same state.

        Where the model can be stepped, a beginning that discrete candidates share is rolled out
        once: after one step there are at most as many states as actions.
        """
        if isinstance(self._model, ActionIWM) and isinstance(self._space, Discrete):
            past = self._model.past(self._history)
            return shared_rollout(self._model, self._z, past, actions, self._vectors)
        count = len(actions)
        if isinstance(self._space, Discrete):
            vectors = self._vectors[actions.to(self._vectors.device)]
        else:
            none = torch.full(actions.shape[:-1], -1, dtype=torch.int64)
            vectors = self._model.action_vectors(none, actions).to(self._z.device)
        history = None
        if self._history is not None:
            history = type(self._history)(
                z_cls=self._history.z_cls.expand(count, -1, -1),
                action=self._history.action.expand(count, -1, -1),
            )
        found = self._model.rollout(self._z.expand(count, -1), vectors, history)
        return Trajectories(found.z_cls, found.log_error)


def shared_rollout(
    model: ActionIWM, z_cls: Tensor, past: Past | None, actions: Tensor, vectors: Tensor
) -> Trajectories:
    """Roll out candidates, each distinct prefix once.

    Args:
        model: steps the latents.
        z_cls: [1, D], where all candidates start.
        past: of the start, one row.
        actions: int64 [B, K], rows of ``vectors``.
        vectors: [n, A].

    Returns:
        What ``model.rollout`` returns for every candidate by itself.
    """
    node = torch.zeros(len(actions), dtype=torch.int64, device=z_cls.device)
    latent = z_cls
    conditions = model.dynamics.conditions(vectors)
    latents, errors = [], []
    for action in actions.to(z_cls.device).unbind(1):
        prefix, node = torch.unique(node * len(vectors) + action, return_inverse=True)
        before = prefix // len(vectors)
        here = None if past is None else past.rows(before)
        feature, latent, past = model.dynamics.step(
            latent[before], prefix % len(vectors), here, conditions
        )
        latents.append(latent[node])
        errors.append(model.dynamics.log_error(feature)[node])
    return Trajectories(torch.stack(latents, 1).float(), torch.stack(errors, 1).float())

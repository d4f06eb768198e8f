"""The embodied world model: what a state becomes under actions, imagined many times at once.

States are plain vectors: positions and velocities from a simulator, or an image world model's
latents of an agent's own views. Their normalisation lives in the model, so that callers give
and get the states' own units.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn

from iwm.errors import ModelError
from iwm.models.embodied.config import EmbodiedConfig
from iwm.models.embodied.dynamics import Dynamics, Encoder, Readouts, gaussian
from iwm.models.embodied.imagine import Imagined, Policy, Reward, imagine
from iwm.models.embodied.learning import Posterior, learn
from iwm.models.encoder import load_state
from iwm.models.saving import WEIGHTS_FILE, read_config, read_weights, save_model
from iwm.objectives.collapse import deviation, effective_rank
from iwm.objectives.gather import Part
from iwm.settings import parse, to_dict

NAME = "embodied"


class Trajectories(Protocol):
    """What a batch must hold: ``states`` float [B, T, S], ``actions`` float [B, T, A] and
    ``rewards`` float [B, T]. ``actions[:, t]`` lead from ``states[:, t]`` to the next;
    ``rewards[:, t]`` are their outcome.
    """

    states: Tensor
    actions: Tensor
    rewards: Tensor


class WorldModel(nn.Module):
    """Encoder, action-conditioned recurrent dynamics, decoder, reward.

    Args:
        state_dim: S, numbers of a state.
        latent_dim: L, width of the recurrent latent.
        hidden_dim: width of the hidden layers.
        horizon: steps that it is trained on, and of a rollout where none are named.
        action_dim: A, numbers of an action.
        trainable: also build what only training needs.
        more: other fields of :class:`EmbodiedConfig`.

    Raises:
        ConfigError: one line per wrong setting.
    """

    state_mean: Tensor
    state_std: Tensor
    reward_mean: Tensor
    reward_std: Tensor

    def __init__(
        self,
        state_dim: int = 256,
        latent_dim: int = 128,
        hidden_dim: int = 512,
        horizon: int = 50,
        action_dim: int = 2,
        *,
        trainable: bool = True,
        **more: Any,
    ) -> None:
        super().__init__()
        sizes = {
            "state_dim": state_dim,
            "latent_dim": latent_dim,
            "hidden_dim": hidden_dim,
            "horizon": horizon,
            "action_dim": action_dim,
        }
        self.config = config = parse(EmbodiedConfig, {**sizes, **more}, "model")
        self.encoder = Encoder(config)
        self.dynamics = Dynamics(config)
        self.readouts = Readouts(config)
        with torch.no_grad():  # what is encoded is decoded, so far as the widths allow
            self.readouts.state.weight.copy_(self.encoder.linear.weight.t())
            self.readouts.state.bias.zero_()
        self.register_buffer("state_mean", torch.zeros(state_dim))
        self.register_buffer("state_std", torch.ones(state_dim))
        self.register_buffer("reward_mean", torch.zeros(()))
        self.register_buffer("reward_std", torch.ones(()))
        self.posterior = Posterior(config) if trainable else None
        self._draw: tuple[torch.Generator, Part | None] = (torch.default_generator, None)
        self._statistics = True

    # -- what a model does -------------------------------------------------------------

    @property
    def state_dim(self) -> int:
        """S."""
        return self.config.state_dim

    @property
    def action_dim(self) -> int:
        """A."""
        return self.config.action_dim

    @property
    def horizon(self) -> int:
        """Steps of a rollout where none are named."""
        return self.config.horizon

    def normalise_by(
        self, mean: Tensor, std: Tensor, reward_mean: float, reward_std: float
    ) -> None:
        """Take the training data's statistics: [S] and [S], and those of the rewards.

        A number that never changes (deviation 0) keeps its own scale.

        Raises:
            ModelError: other shapes, or numbers that are not finite.
        """
        for name, value in (("mean", mean), ("std", std)):
            if value.shape != self.state_mean.shape or not value.isfinite().all():
                raise ModelError(
                    f"{name} of the states: shape {list(value.shape)}, expected finite numbers "
                    f"[{self.state_dim}]"
                )
        self.state_mean.copy_(mean)
        self.state_std.copy_(torch.where(std > 1e-6, std, 1.0))
        self.reward_mean.fill_(reward_mean)
        self.reward_std.fill_(reward_std if reward_std > 1e-6 else 1.0)

    def normalised(self, states: Tensor) -> Tensor:
        """States [..., S] in standard deviations from the training data's mean."""
        return (states - self.state_mean) / self.state_std

    def decoded(self, latents: Tensor) -> Tensor:
        """States [..., S], in their own units, of latents [..., L]."""
        return torch.addcmul(self.state_mean, self.readouts.state(latents), self.state_std)

    def rewards(self, latents: Tensor) -> Tensor:
        """Rewards [...] of the steps that led to latents [..., L]."""
        told: Tensor = self.readouts.reward(latents)[..., 0]
        return self.reward_mean + self.reward_std * told

    @torch.inference_mode()
    def predict(self, state: Tensor, actions: Tensor) -> Tensor:
        """The expected states after each of K actions, in one rollout without draws.

        Args:
            state: float [B, S].
            actions: float [B, K, A].

        Returns:
            States [B, K, S].

        Raises:
            ModelError: other shapes, or numbers that are not finite.
        """
        return self.decoded(self.unroll(state, actions))

    @torch.inference_mode()
    def expected_error(self, state: Tensor, actions: Tensor) -> Tensor:
        """RMSE [B, K] that the model expects of :meth:`predict`, in standard deviations.

        Raises:
            ModelError: as there.
        """
        return self.readouts.log_error(self.unroll(state, actions)).exp()

    def unroll(self, state: Tensor, actions: Tensor) -> Tensor:
        """Latents [B, K, L] along actions; each step takes its prior's mean."""
        state = self.checked(state)
        wanted = (len(state), actions.shape[1] if actions.ndim == 3 else 0, self.action_dim)
        if actions.ndim != 3 or actions.shape != wanted or not wanted[1]:
            raise ModelError(
                f"actions: shape {list(actions.shape)}, expected [B, K, A] = "
                f"[{len(state)}, K, {self.action_dim}]"
            )
        if not actions.isfinite().all():
            raise ModelError("actions: hold numbers that are not finite")
        latent = self.encoder(self.normalised(state))
        latents = []
        for action in actions.to(state).unbind(1):
            pre, prior = self.dynamics.before(latent, action)
            latent = self.dynamics.after(latent, pre, gaussian(prior)[0])
            latents.append(latent)
        return torch.stack(latents, 1)

    def imagine(
        self,
        state: Tensor,
        policy: Policy | Tensor | None = None,
        n: int = 10,
        horizon: int | None = None,
        *,
        seed: int = 0,
        reward: Reward | None = None,
    ) -> Imagined:
        """n rollouts from each state, in one batch. They differ: each draws its own latents,
        and follows what the policy does in its own states.

        Args:
            state: float [B, S].
            policy: what to do in imagined states (see :data:`Policy`); or plans, [B, n, H, A],
                [n, H, A] or [H, A], which is faster; ``None``: random plans.
            n: rollouts from each state.
            horizon: steps H; the model's own when ``None``.
            seed: of the draws; the same seed gives the same rollouts of a state whatever else
                is in the batch.
            reward: judges the rollouts in place of the model's own reward.

        Raises:
            ModelError: a state or an action of another shape, or not finite; ``n`` or
                ``horizon`` below one.
        """
        horizon = self.horizon if horizon is None else horizon
        if n < 1 or horizon < 1:
            raise ModelError(f"imagine: n {n} and horizon {horizon} must be at least 1")
        return imagine(self, self.checked(state), policy, n, horizon, seed, reward)

    def checked(self, state: Tensor) -> Tensor:
        """A state as float32 [B, S] on the model's device.

        Raises:
            ModelError: another shape, no row, or numbers that are not finite.
        """
        if state.ndim != 2 or state.shape[1] != self.state_dim or not len(state):
            raise ModelError(
                f"state: shape {list(state.shape)}, expected [B, S] = [B, {self.state_dim}]"
            )
        if not state.isfinite().all():
            row = int((~state.isfinite()).any(1).nonzero()[0])
            raise ModelError(f"state: row {row} holds numbers that are not finite")
        return state.to(self.state_mean)

    # -- training ----------------------------------------------------------------------

    def before_step(self, seed: int, part: Part | None = None, *, statistics: bool = True) -> None:
        """Fix the step's randomness, drawn for the global batch; see the trainer."""
        self._draw = (torch.Generator().manual_seed(seed), part)
        self._statistics = statistics

    def after_step(self, progress: float) -> None:
        """Rollouts grow with ``progress``, the share of training done."""
        assert self.posterior is not None
        self.posterior.progress.fill_(progress)

    def blocks(self) -> list[nn.Module]:
        """No part is repeated: nothing is compiled or sharded apart."""
        return []

    def forward(self, batch: Trajectories) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and logs of windows [B, T].

        Raises:
            ModelError: windows of fewer than two states.
        """
        assert self.posterior is not None, "a model loaded without trainable=True cannot train"
        if batch.states.shape[1] < 2:
            raise ModelError("training needs windows of at least two states")
        generator, part = self._draw[0], self._draw[1] or Part.whole(len(batch.states))
        terms, latents = learn(self, self.posterior, batch, generator, part)
        weights = self.config.objective
        loss = torch.stack([getattr(weights, name) * value for name, value in terms.items()]).sum()
        logs = {f"loss_{name}": value.detach() for name, value in terms.items()}
        if self._statistics:
            every = part.gather(latents.detach())
            logs["effective_rank"] = effective_rank(every)
            logs["mean_std"] = deviation(every).mean()
            logs["min_std"] = deviation(every).min()
        return loss, logs

    # -- on disk -----------------------------------------------------------------------

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the released model, its normalisation included."""
        released = {
            name: value
            for name, value in self.state_dict().items()
            if not name.startswith("posterior.")
        }
        save_model(Path(folder), NAME, to_dict(self.config), released)

    @classmethod
    def from_pretrained(cls, folder: str | Path, *, trainable: bool = False) -> Self:
        """Load a released model, ready to imagine (eval mode) or, if asked, to train on.

        Raises:
            ModelError: missing, damaged, newer, or of another shape than its config says.
        """
        folder = Path(folder)
        settings = read_config(folder, NAME)["settings"]
        model = cls(**settings, trainable=trainable)
        posterior, model.posterior = model.posterior, None
        load_state(model, read_weights(folder), str(folder / WEIGHTS_FILE))
        model.posterior = posterior
        return model.train(trainable)


def create(**settings: Any) -> WorldModel:
    """An untrained model from plain settings (the entry in the model registry)."""
    return WorldModel(**settings)

"""The action-conditioned world model: Phase 3.

An encoder gives each frame a CLS latent and patch latents; causal dynamics over a short
history of (latent, action) predict the next frame's. Two contrasts make the latents: of all
frames a prediction must be nearest to its own outcome, and of all actions the one taken must
predict it best; an inverse-dynamics head keeps the action in them (games have much static
background; without it actions can vanish). Squared errors, one step ahead and along rollouts,
keep predictions true in size: a contrast alone is won by overstating what an action does.
There is no target network: the contrasts and the inverse dynamics leave a collapsed encoder
with the loss of chance.

An action vector is ``[augmentation | one-hot of the named action | continuous action]``; all
zeros means "not known". The augmentation part has the meaning it has in Phase 1
(:data:`iwm.data.augment.ACTION_FIELDS`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from iwm.data.augment import AUG_DIM, JITTER, to_float
from iwm.errors import ModelError
from iwm.models.action_config import ActionConfig
from iwm.models.action_learning import ActionLearning, Played
from iwm.models.action_windows import augment_windows
from iwm.models.dynamics import Dynamics, Past
from iwm.models.encoder import Encoder, load_state
from iwm.models.iwm import Prediction
from iwm.models.predictor import normalise
from iwm.models.saving import WEIGHTS_FILE, read_config, read_weights, save_model
from iwm.objectives.collapse import deviation, effective_rank
from iwm.objectives.gather import Part
from iwm.settings import parse, to_dict

NAME = "action"


class Windows(Protocol):
    """What a batch must hold: ``images`` uint8 [B, T, 3, H, W], ``action`` int64 [B, T] in the
    model's vocabulary (-1: none), ``action_vector`` float [B, T, C] or ``None``.
    """

    images: Tensor
    action: Tensor
    action_vector: Tensor | None


@dataclass(frozen=True)
class History:
    """Earlier frames, oldest first: ``z_cls`` [B, h, D], and ``action`` [B, h, A] taken after
    each of them; the last one led to the present frame.
    """

    z_cls: Tensor
    action: Tensor


class ActionIWM(nn.Module):
    """Encoder and dynamics, and what trains them.

    Args:
        config: shapes, vocabulary, objective.
        trainable: also build the heads that only training needs.
    """

    def __init__(self, config: ActionConfig, *, trainable: bool = True) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.dynamics = Dynamics(config, self.aug_dim)
        self._draw: tuple[torch.Generator, Part | None] = (torch.default_generator, None)
        self._statistics = True
        self.learning: ActionLearning | None = None
        if not trainable:
            return
        if config.encoder.weights:
            self.encoder.load_timm(config.encoder.weights)
        self.learning = ActionLearning(config, self.aug_dim)

    # -- what a served model does ------------------------------------------------------

    @property
    def latent_dim(self) -> int:
        """D."""
        return self.config.encoder.width

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """Names of the discrete actions."""
        return self.config.vocabulary

    @property
    def history(self) -> int:
        """Frames that a prediction attends to at most, the present one included."""
        return self.config.history

    @property
    def aug_dim(self) -> int:
        """A, the length of an action vector."""
        return AUG_DIM + len(self.config.vocabulary) + self.config.action_dim

    def action_vectors(self, ids: Tensor, continuous: Tensor | None = None) -> Tensor:
        """Action vectors [..., A] of positions in the vocabulary [...]; -1 is "not known".

        Args:
            ids: int64.
            continuous: [..., C]; zeros when ``None``.

        Raises:
            ModelError: a position outside the vocabulary, or another number of numbers.
        """
        names = len(self.config.vocabulary)
        if ids.numel() and not -1 <= int(ids.min()) <= int(ids.max()) < max(names, 1):
            raise ModelError(
                f"actions {int(ids.min())} to {int(ids.max())} are outside the model's vocabulary "
                f"of {names}: {', '.join(self.config.vocabulary)}"
            )
        vector = torch.zeros(*ids.shape, self.aug_dim, device=ids.device)
        if names:
            one_hot = F.one_hot(ids.clamp_min(0), names) * (ids >= 0).unsqueeze(-1)
            vector[..., AUG_DIM : AUG_DIM + names] = one_hot.to(vector.dtype)
        if continuous is not None:
            if continuous.shape[-1] != self.config.action_dim:
                raise ModelError(
                    f"continuous actions have {continuous.shape[-1]} numbers, the model takes "
                    f"{self.config.action_dim}"
                )
            vector[..., AUG_DIM + names :] = continuous
        return vector

    @torch.no_grad()
    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Layer-normed latents of images [B, 3, H, W], uint8 or float in [0, 1].

        Returns:
            z_cls [B, D] and z_patches [B, N, D], float32.

        Raises:
            ModelError: images of another size.
        """
        if tuple(images.shape[-2:]) != tuple(self.config.image_size):
            raise ModelError(
                f"images are {images.shape[-2]}x{images.shape[-1]} (height x width), the model "
                f"takes {self.config.image_size[0]}x{self.config.image_size[1]}"
            )
        return self._latents(to_float(images))

    @torch.no_grad()
    def predict(
        self,
        z_cls: Tensor,
        action: Tensor,
        z_patches: Tensor | None = None,
        history: History | None = None,
    ) -> Prediction:
        """Latents after an action. Predicted latents can be fed back in.

        Predictions are least-squares ones: where the outcome is uncertain they lie nearer to
        the mean, so their norm may be below that of an encoded frame.

        Args:
            z_cls: [B, D].
            action: [B, A], see :meth:`action_vectors`.
            z_patches: [B, N, D] of the same frame, to predict the next ones; they do not change
                the predicted CLS.
            history: earlier frames, or ``None``.
        """
        feature, predicted, _ = self.dynamics.step(z_cls, action, self.past(history))
        patches = None
        if z_patches is not None:
            patches = self.dynamics.next_patches(feature, z_patches, action).float()
        return Prediction(predicted.float(), patches, self.dynamics.log_error(feature).float())

    @torch.no_grad()
    def rollout(self, z_cls: Tensor, actions: Tensor, history: History | None = None) -> Prediction:
        """K steps from CLS latents, each from the one before, one new token a step.

        Args:
            z_cls: [B, D].
            actions: [B, K, A].
            history: earlier frames, or ``None``.

        Returns:
            ``z_cls`` [B, K, D] and ``log_error`` [B, K].
        """
        past, latent = self.past(history), z_cls
        latents, errors = [], []
        for step in range(actions.shape[1]):
            feature, latent, past = self.dynamics.step(latent, actions[:, step], past)
            latents.append(latent)
            errors.append(self.dynamics.log_error(feature))
        return Prediction(torch.stack(latents, 1).float(), None, torch.stack(errors, 1).float())

    def past(self, history: History | None) -> Past | None:
        """What the dynamics keep of earlier frames, for :meth:`Dynamics.step`."""
        if history is None or not history.z_cls.shape[1]:
            return None
        past: Past = self.dynamics(history.z_cls, history.action)[1]
        return past

    def _latents(self, images: Tensor) -> tuple[Tensor, Tensor]:
        cls, patches = self.encoder(images)
        return normalise(cls.float()), normalise(patches.float())

    # -- training ----------------------------------------------------------------------

    def before_step(self, seed: int, part: Part | None = None, *, statistics: bool = True) -> None:
        """Fix the step's randomness, drawn for the global batch.

        Args:
            seed: of the step, the same in every process.
            part: the rows of the global batch that come next; ``None``: all of them.
            statistics: whether the step's logs hold the figures that show collapse.
        """
        self._draw = (torch.Generator().manual_seed(seed), part)
        self._statistics = statistics

    def after_step(self, progress: float) -> None:
        """Rollouts grow with ``progress``, the share of training done."""
        assert self.learning is not None
        self.learning.progress.fill_(progress)

    def blocks(self) -> list[nn.Module]:
        """The repeated parts, each of which is compiled, and sharded, as a unit."""
        parts = (self.encoder.blocks, self.dynamics.blocks, self.dynamics.patch_blocks)
        return [block for part in parts for block in part]

    def forward(self, batch: Windows) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and logs of windows [B, T]; see :mod:`iwm.objectives.gather` for their means.

        Raises:
            ModelError: windows of fewer than two frames.
        """
        assert self.learning is not None, "a model loaded without trainable=True cannot train"
        if batch.images.shape[1] < 2:
            raise ModelError("training on actions needs windows of at least two frames")
        generator, part = self._draw[0], self._draw[1] or Part.whole(len(batch.images))
        numbers = None if batch.action_vector is None else batch.action_vector[:, :-1]
        images, ids, jitters = augment_windows(
            to_float(batch.images), batch.action[:, :-1], self.config, part, generator
        )
        actions = self.action_vectors(ids, numbers)
        actions[..., :JITTER] = jitters
        latents = self._latents(images.flatten(0, 1))
        cls, patches = (z.view(*batch.images.shape[:2], *z.shape[1:]) for z in latents)
        played = Played(cls, patches, actions, ids, numbers, part, generator)
        terms, figures = self.learning(self.dynamics, played)

        loss = torch.stack([weight * value for weight, value in terms.values()]).sum()
        logs = {f"loss_{name}": value.detach() for name, (_, value) in terms.items()}
        logs |= {name: value.detach() for name, value in figures.items()}
        if self._statistics:
            every = part.gather(cls[:, 0].detach())
            logs["effective_rank"] = effective_rank(every)
            logs["mean_std"] = deviation(every).mean()
            logs["min_std"] = deviation(every).min()
        return loss, logs

    # -- on disk -----------------------------------------------------------------------

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the released model: encoder and dynamics."""
        released = {
            name: value
            for name, value in self.state_dict().items()
            if name.startswith(("encoder.", "dynamics."))
        }
        save_model(Path(folder), NAME, to_dict(self.config), released)

    @classmethod
    def from_pretrained(cls, folder: str | Path, *, trainable: bool = False) -> Self:
        """Load a released model, ready to serve (eval mode) or, if asked, to train on.

        Raises:
            ModelError: missing, damaged, newer, or of another shape than its config says.
        """
        folder = Path(folder)
        config = model_config(read_config(folder, NAME)["settings"], str(folder))
        model = cls(config, trainable=trainable)
        released = nn.ModuleDict({"encoder": model.encoder, "dynamics": model.dynamics})
        load_state(released, read_weights(folder), str(folder / WEIGHTS_FILE))
        return model.train(trainable)


def model_config(settings: dict[str, Any], where: str = "model") -> ActionConfig:
    """Typed settings from plain ones.

    Raises:
        ConfigError: one line per wrong key.
    """
    return parse(ActionConfig, settings, where)


def create(**settings: Any) -> ActionIWM:
    """An untrained model from plain settings (the entry in the model registry)."""
    return ActionIWM(model_config(settings))

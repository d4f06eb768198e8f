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

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from iwm.data.augment import AUG_DIM, JITTER, jitter, to_float
from iwm.errors import ModelError
from iwm.models.action_config import ActionConfig
from iwm.models.dynamics import Dynamics, Past
from iwm.models.encoder import Encoder, load_state
from iwm.models.iwm import Prediction
from iwm.models.predictor import normalise
from iwm.models.saving import WEIGHTS_FILE, read_config, read_weights, save_model
from iwm.objectives.collapse import covariance_loss, deviation, effective_rank, variance_loss
from iwm.objectives.contrast import action_contrast, frame_contrast
from iwm.objectives.gather import Part
from iwm.objectives.jepa import error_of
from iwm.settings import parse, to_dict

NAME = "action"
# The habit head's outputs are scaled, so that it follows the policy within a few hundred steps.
_HABIT_SCALE = 10.0
_MAX_SHARPNESS = 100.0


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
        self._trainable = trainable
        if not trainable:
            return
        if config.encoder.weights:
            self.encoder.load_timm(config.encoder.weights)
        width, objective = config.encoder.width, config.objective
        names, numbers = len(config.vocabulary), config.action_dim
        if objective.inverse:
            self.inverse = nn.Sequential(
                nn.Linear(2 * width, 2 * width), nn.GELU(), nn.Linear(2 * width, names + numbers)
            )
        if objective.action_contrast and names:
            # The policy's habit, p(action | frame, action before): see `action_contrast`.
            last = nn.Linear(width, names)
            nn.init.zeros_(last.weight)
            self.habit = nn.Sequential(nn.Linear(width + self.aug_dim, width), nn.GELU(), last)
        if objective.contrast or objective.action_contrast:
            self.log_sharpness = nn.Parameter(torch.tensor(-math.log(objective.temperature)))
        self.progress: Tensor
        self.register_buffer("progress", torch.zeros(()))

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
        feature, predicted, _ = self.dynamics.step(z_cls, action, self._past(history))
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
        past, latent = self._past(history), z_cls
        latents, errors = [], []
        for step in range(actions.shape[1]):
            feature, latent, past = self.dynamics.step(latent, actions[:, step], past)
            latents.append(latent)
            errors.append(self.dynamics.log_error(feature))
        return Prediction(torch.stack(latents, 1).float(), None, torch.stack(errors, 1).float())

    def _past(self, history: History | None) -> Past | None:
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
        self.progress.fill_(progress)

    def blocks(self) -> list[nn.Module]:
        """The repeated parts, each of which is compiled, and sharded, as a unit."""
        parts = (self.encoder.blocks, self.dynamics.blocks, self.dynamics.patch_blocks)
        return [block for part in parts for block in part]

    def forward(self, batch: Windows) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and logs of windows [B, T]; see :mod:`iwm.objectives.gather` for their means.

        Raises:
            ModelError: windows of fewer than two frames.
        """
        assert self._trainable, "a model loaded without trainable=True cannot train"
        if batch.images.shape[1] < 2:
            raise ModelError("training on actions needs windows of at least two frames")
        c, generator = self.config.objective, self._draw[0]
        part = self._draw[1] or Part.whole(len(batch.images))
        ids = batch.action[:, :-1]
        numbers = None if batch.action_vector is None else batch.action_vector[:, :-1]
        images, ids, augmentation = self._augment(to_float(batch.images), ids, part, generator)
        actions = self.action_vectors(ids, numbers)
        actions[..., :JITTER] = augmentation
        known = (ids >= 0) if numbers is None else torch.ones_like(ids, dtype=torch.bool)

        cls, patches = self._latents(images.flatten(0, 1))
        cls, patches = (z.view(*batch.images.shape[:2], *z.shape[1:]) for z in (cls, patches))
        terms: dict[str, tuple[float, Tensor]] = {}
        accuracy: dict[str, Tensor] = {}
        seen = part.gather(known.float().sum(1)).sum().clamp_min(1.0)
        known_share = part.world / seen
        here, outcome = cls[:, :-1], cls[:, 1:]
        if c.contrast or c.action_contrast:
            terms |= self._contrasts(cls, actions, ids, known, part, known_share, generator)
        terms |= self._predictions(cls.detach(), patches.detach(), actions, part, generator)
        if c.inverse:
            loss, right = self._inverse_loss(here, outcome, ids, numbers, known)
            terms["inverse"] = (c.inverse, known_share * loss)
            accuracy["inverse_accuracy"] = known_share * right
        if c.variance or c.covariance:
            every = part.gather(cls[:, 0])
            terms["variance"] = (c.variance, variance_loss(every))
            terms["covariance"] = (c.covariance, covariance_loss(every))

        loss = torch.stack([weight * value for weight, value in terms.values()]).sum()
        logs = {f"loss_{name}": value.detach() for name, (_, value) in terms.items()}
        logs |= {name: value.detach() for name, value in accuracy.items()}
        if self._statistics:
            every = part.gather(cls[:, 0].detach())
            logs["effective_rank"] = effective_rank(every)
            logs["mean_std"] = deviation(every).mean()
            logs["min_std"] = deviation(every).min()
        return loss, logs

    def _contrasts(
        self,
        cls: Tensor,
        actions: Tensor,
        ids: Tensor,
        known: Tensor,
        part: Part,
        known_share: Tensor,
        generator: torch.Generator,
    ) -> dict[str, tuple[float, Tensor]]:
        """What makes the latents: outcomes and actions are told apart. Reaches the encoder."""
        c = self.config.objective
        here, outcome = cls[:, :-1], cls[:, 1:]
        # At about half of the steps actions are tried from the frame alone, as for clients that
        # keep no history.
        remember = (torch.rand(ids.shape[1], generator=generator) < 0.5).to(ids.device)
        features, _ = self.dynamics(here, actions, self._others(actions, ids, part), remember)
        predicted = self.dynamics.next_cls(here.unsqueeze(2), features)
        taken, tried = predicted[:, :, 0], predicted[:, :, 1:]
        terms: dict[str, tuple[float, Tensor]] = {}
        if c.contrast:
            own = _own_places(part.total, cls.shape[1], cls.device)
            frames = part.gather(cls).flatten(0, 1)
            both = [part.gather(each).flatten(0, 1) for each in (taken, tried[:, :, 0])]
            terms["contrast"] = (
                c.contrast,
                frame_contrast(torch.cat(both), frames, own.repeat(2), self._sharpness()),
            )
        if c.action_contrast:
            wanted = known.flatten()
            habit, habit_loss = self._habit(here, actions, ids, known, remember)
            each = action_contrast(
                tried.flatten(0, 1)[wanted],
                outcome.flatten(0, 1)[wanted],
                self._sharpness(),
                None if habit is None else habit[wanted],
            )
            terms["action_contrast"] = (c.action_contrast, known_share * each.sum())
            if habit_loss is not None:
                terms["habit"] = (1.0, known_share * habit_loss)
        return terms

    def _predictions(
        self,
        cls: Tensor,
        patches: Tensor,
        actions: Tensor,
        part: Part,
        generator: torch.Generator,
    ) -> dict[str, tuple[float, Tensor]]:
        """Squared errors of what is served: with history, from the frame alone, without the
        action, along rollouts, of patches. The latents are constants here: errors would teach
        the encoder what is easy to predict, which is what never changes.
        """
        c = self.config.objective
        here, goal = cls[:, :-1], cls[:, 1:]
        share = part.weight(len(cls), part.total)
        nothing = torch.zeros_like(actions)
        nothing[..., :AUG_DIM] = actions[..., :AUG_DIM]
        features, past = self.dynamics(here, actions, torch.stack([actions, nothing], dim=2))
        predicted = self.dynamics.next_cls(here.unsqueeze(2), features)
        goals = goal.unsqueeze(2).expand_as(predicted)
        told = self.dynamics.log_error(features)
        terms = {
            "prediction": (c.prediction, share * F.mse_loss(predicted, goals)),
            "error_head": (1.0, share * _error_head_loss(told, predicted, goals)),
        }
        if c.rollout:
            taken = predicted[:, :, 0]
            rolled = self._rollout_losses(taken, actions, goal, past, generator)
            if rolled is not None:
                terms["rollout"] = (c.rollout, share * rolled[0])
                terms["rollout_error_head"] = (1.0, share * rolled[1])
        if c.patches:
            at = int(torch.randint(here.shape[1], (1,), generator=generator))
            guess = self.dynamics.next_patches(features[:, at, 0], patches[:, at], actions[:, at])
            terms["patches"] = (c.patches, share * F.mse_loss(guess, patches[:, at + 1]))
        return terms

    def _sharpness(self) -> Tensor:
        return self.log_sharpness.exp().clamp(max=_MAX_SHARPNESS)

    def _augment(
        self, images: Tensor, ids: Tensor, part: Part, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Mirror and jitter whole windows; returns the jitters' differences [B, T - 1, 4]."""
        a, (batch, length) = self.config.augment, images.shape[:2]
        device = images.device
        if a.mirror:
            drawn = torch.rand(part.total, generator=generator)[part.rows].to(device)
            flipped = drawn < a.mirror_share
            images = torch.where(flipped.view(-1, 1, 1, 1, 1), images.flip(-1), images)
            exchange = torch.arange(len(self.vocabulary))
            for left, right in a.mirror:
                i, j = self.vocabulary.index(left), self.vocabulary.index(right)
                exchange[i], exchange[j] = j, i
            mirrored = exchange.to(device)[ids.clamp_min(0)]
            ids = torch.where(flipped[:, None] & (ids >= 0), mirrored, ids)
        if not a.jitter_share:
            return images, ids, images.new_zeros(batch, length - 1, JITTER)
        strength = torch.tensor(a.jitter)
        drawn = 2 * torch.rand(part.total, length, JITTER, generator=generator) - 1
        chosen = torch.rand(part.total, 1, 1, generator=generator) < a.jitter_share
        parameters = (drawn * strength * chosen)[part.rows].to(device)
        rows = chosen[part.rows].flatten().to(device)
        if rows.any():
            images = images.clone()
            changed = jitter(images[rows].flatten(0, 1), parameters[rows].flatten(0, 1))
            images[rows] = changed.view(-1, *images.shape[1:])
        return images, ids, parameters[:, 1:] - parameters[:, :-1]

    def _others(self, actions: Tensor, ids: Tensor, part: Part) -> Tensor:
        """The action taken, and others that might have been: [B, T - 1, 1 + M, A]."""
        names = len(self.config.vocabulary)
        if not self.config.objective.action_contrast:
            return actions.unsqueeze(2)
        if names:
            others = actions.unsqueeze(2).repeat(1, 1, names, 1)
            shifts = torch.arange(names, device=ids.device)
            one_hot = F.one_hot((ids.clamp_min(0).unsqueeze(-1) + shifts) % names, names)
            others[..., AUG_DIM : AUG_DIM + names] = one_hot.to(others.dtype)
            return others
        # Other rows' actions at the same step, spread over the global batch.
        everyone = part.gather(actions)
        count = self.config.objective.negatives
        places = torch.arange(part.rows.start, part.rows.stop, device=ids.device)
        jumps = torch.arange(count + 1, device=ids.device) * max(1, part.total // (count + 1))
        return everyone[(places[:, None] + jumps) % part.total].transpose(1, 2)

    def _habit(
        self, here: Tensor, actions: Tensor, ids: Tensor, known: Tensor, remember: Tensor
    ) -> tuple[Tensor | None, Tensor | None]:
        """Log-probabilities [P, 1 + M] of the actions as `_others` orders them, and their loss."""
        names = len(self.config.vocabulary)
        if not names:
            return None, None
        before = torch.cat([torch.zeros_like(actions[:, :1]), actions[:, :-1]], dim=1)
        before = before * remember[None, :, None]
        logits = _HABIT_SCALE * self.habit(torch.cat([here.detach(), before], dim=-1))
        log_probability = logits.float().log_softmax(-1)
        order = (ids.clamp_min(0).unsqueeze(-1) + torch.arange(names, device=ids.device)) % names
        ordered = log_probability.gather(-1, order)
        return ordered.detach().flatten(0, 1), -ordered[..., 0][known].sum()

    def _inverse_loss(
        self, here: Tensor, outcome: Tensor, ids: Tensor, numbers: Tensor | None, known: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Sum over known transitions, and how many named actions were recovered."""
        recovered = self.inverse(torch.cat([here, outcome], dim=-1))[known].float()
        names = len(self.config.vocabulary)
        loss, right = recovered.sum() * 0.0, recovered.new_zeros(())
        if names:
            named = ids[known]
            loss = loss + F.cross_entropy(
                recovered[:, :names], named, ignore_index=-1, reduction="sum"
            )
            right = (recovered[:, :names].argmax(-1) == named).float().sum()
        if numbers is not None:
            squared = (recovered[:, names:] - numbers[known]).square()
            loss = loss + squared.mean(-1).sum()
        return loss, right

    def _rollout_losses(
        self, taken: Tensor, actions: Tensor, goal: Tensor, past: Past, generator: torch.Generator
    ) -> tuple[Tensor, Tensor] | None:
        """Of predictions from predictions, after a random number of real frames: their error,
        and their error head's.
        """
        first, last = self.config.objective.rollout_steps
        length = taken.shape[1]
        steps = min(length, round(first + (last - first) * float(self.progress)))
        if steps < 2:
            return None
        most = min(self.config.history, length - steps + 1)
        context = 1 + int(torch.randint(most, (1,), generator=generator))
        latent, seen = taken[:, context - 1], past.first(context)
        latents, told = [], []
        for place in range(context, context + steps - 1):
            feature, latent, seen = self.dynamics.step(latent, actions[:, place], seen)
            latents.append(latent)
            told.append(self.dynamics.log_error(feature))
        rolled, true = torch.stack(latents, 1), goal[:, context : context + steps - 1]
        return F.mse_loss(rolled, true), _error_head_loss(torch.stack(told, 1), rolled, true)

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


def _error_head_loss(told: Tensor, predicted: Tensor, goal: Tensor) -> Tensor:
    actual = error_of(predicted.detach(), goal).clamp_min(1e-6).log()
    return F.smooth_l1_loss(told.float(), actual)


def _own_places(rows: int, length: int, device: torch.device) -> Tensor:
    """Where among [rows * length] frames the outcomes of [rows * (length - 1)] steps stand."""
    start = torch.arange(rows, device=device)[:, None] * length
    return (start + torch.arange(1, length, device=device)).flatten()


def model_config(settings: dict[str, Any], where: str = "model") -> ActionConfig:
    """Typed settings from plain ones.

    Raises:
        ConfigError: one line per wrong key.
    """
    return parse(ActionConfig, settings, where)


def create(**settings: Any) -> ActionIWM:
    """An untrained model from plain settings (the entry in the model registry)."""
    return ActionIWM(model_config(settings))

"""What teaches an action-conditioned model: its losses, and the heads that only they need."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from iwm.data.augment import AUG_DIM
from iwm.models.action_config import ActionConfig
from iwm.models.dynamics import Dynamics, Past
from iwm.objectives.collapse import covariance_loss, variance_loss
from iwm.objectives.contrast import action_contrast, frame_contrast
from iwm.objectives.gather import Part
from iwm.objectives.jepa import error_of

Terms = dict[str, tuple[float, Tensor]]
"""Name -> weight and value; see :mod:`iwm.objectives.gather` for the values' means."""

# The habit head's outputs are scaled, so that it follows the policy within a few hundred steps.
_HABIT_SCALE = 10.0
_MAX_SHARPNESS = 100.0


@dataclass(frozen=True)
class Played:
    """Windows of play, encoded. B windows of T frames, T - 1 actions between them."""

    cls: Tensor
    """[B, T, D], layer-normed."""
    patches: Tensor
    """[B, T, N, D], layer-normed."""
    actions: Tensor
    """[B, T - 1, A]."""
    ids: Tensor
    """int64 [B, T - 1], places in the vocabulary; -1 is none."""
    numbers: Tensor | None
    """[B, T - 1, C], continuous actions."""
    part: Part
    """The rows of the global batch that these are."""
    generator: torch.Generator
    """The step's randomness, the same in every process."""


class ActionLearning(nn.Module):
    """Losses of :class:`iwm.models.action.ActionIWM`.

    Args:
        config: of the model.
        action_width: A.
    """

    def __init__(self, config: ActionConfig, action_width: int) -> None:
        super().__init__()
        self.config = config
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
            self.habit = nn.Sequential(nn.Linear(width + action_width, width), nn.GELU(), last)
        if objective.contrast or objective.action_contrast:
            self.log_sharpness = nn.Parameter(torch.tensor(-math.log(objective.temperature)))
        self.progress: Tensor
        self.register_buffer("progress", torch.zeros(()))

    def forward(self, dynamics: Dynamics, played: Played) -> tuple[Terms, dict[str, Tensor]]:
        """All terms of the loss, and figures beside them."""
        c, figures = self.config.objective, {}
        terms: Terms = {}
        if c.contrast or c.action_contrast:
            terms |= self._contrasts(dynamics, played)
        terms |= self._predictions(dynamics, played)
        if c.inverse:
            loss, right = self._inverse_loss(played)
            terms["inverse"] = (c.inverse, loss)
            figures["inverse_accuracy"] = right
        if c.variance or c.covariance:
            every = played.part.gather(played.cls[:, 0])
            terms["variance"] = (c.variance, variance_loss(every))
            terms["covariance"] = (c.covariance, covariance_loss(every))
        return terms, figures

    def _contrasts(self, dynamics: Dynamics, played: Played) -> Terms:
        """What makes the latents: outcomes and actions are told apart. Reaches the encoder."""
        c, part, cls = self.config.objective, played.part, played.cls
        actions, ids = played.actions, played.ids
        here, outcome = cls[:, :-1], cls[:, 1:]
        # At about half of the steps actions are tried from the frame alone, as for clients that
        # keep no history.
        remember = (torch.rand(ids.shape[1], generator=played.generator) < 0.5).to(ids.device)
        features, _ = dynamics(here, actions, self.others(actions, ids, part), remember)
        predicted = dynamics.next_cls(here.unsqueeze(2), features)
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
            known = ids >= 0 if self.config.vocabulary else torch.ones_like(ids, dtype=torch.bool)
            share, wanted = _share(known, part), known.flatten()
            habit, habit_loss = self._habit(here, actions, ids, known, remember)
            each = action_contrast(
                tried.flatten(0, 1)[wanted],
                outcome.flatten(0, 1)[wanted],
                self._sharpness(),
                None if habit is None else habit[wanted],
            )
            terms["action_contrast"] = (c.action_contrast, share * each.sum())
            if habit_loss is not None:
                terms["habit"] = (1.0, share * habit_loss)
        return terms

    def _predictions(self, dynamics: Dynamics, played: Played) -> Terms:
        """Squared errors of what is served: with history, from the frame alone, without the
        action, along rollouts, of patches. The latents are constants here: errors would teach
        the encoder what is easy to predict, which is what never changes.
        """
        c, part, actions = self.config.objective, played.part, played.actions
        cls, patches = played.cls.detach(), played.patches.detach()
        here, goal = cls[:, :-1], cls[:, 1:]
        share = part.weight(len(cls), part.total)
        nothing = torch.zeros_like(actions)
        nothing[..., :AUG_DIM] = actions[..., :AUG_DIM]
        features, past = dynamics(here, actions, torch.stack([actions, nothing], dim=2))
        predicted = dynamics.next_cls(here.unsqueeze(2), features)
        goals = goal.unsqueeze(2).expand_as(predicted)
        told = dynamics.log_error(features)
        terms = {
            "prediction": (c.prediction, share * F.mse_loss(predicted, goals)),
            "error_head": (1.0, share * _error_head_loss(told, predicted, goals)),
        }
        if c.rollout:
            taken = predicted[:, :, 0]
            rolled = self._rollout_losses(dynamics, taken, actions, goal, past, played.generator)
            if rolled is not None:
                terms["rollout"] = (c.rollout, share * rolled[0])
                terms["rollout_error_head"] = (1.0, share * rolled[1])
        if c.patches:
            at = int(torch.randint(here.shape[1], (1,), generator=played.generator))
            guess = dynamics.next_patches(features[:, at, 0], patches[:, at], actions[:, at])
            terms["patches"] = (c.patches, share * F.mse_loss(guess, patches[:, at + 1]))
        return terms

    def _sharpness(self) -> Tensor:
        return self.log_sharpness.exp().clamp(max=_MAX_SHARPNESS)

    def others(self, actions: Tensor, ids: Tensor, part: Part) -> Tensor:
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
        """Log-probabilities [P, 1 + M] of the actions as `others` orders them, and their loss."""
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

    def _inverse_loss(self, played: Played) -> tuple[Tensor, Tensor]:
        """Mean over transitions whose action is known, and the share of names recovered."""
        ids, numbers = played.ids, played.numbers
        known = ids >= 0 if numbers is None else torch.ones_like(ids, dtype=torch.bool)
        share = _share(known, played.part)
        pairs = torch.cat([played.cls[:, :-1], played.cls[:, 1:]], dim=-1)
        recovered = self.inverse(pairs)[known].float()
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
        return share * loss, share * right

    def _rollout_losses(
        self,
        dynamics: Dynamics,
        taken: Tensor,
        actions: Tensor,
        goal: Tensor,
        past: Past,
        generator: torch.Generator,
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
            feature, latent, seen = dynamics.step(latent, actions[:, place], seen)
            latents.append(latent)
            told.append(dynamics.log_error(feature))
        rolled, true = torch.stack(latents, 1), goal[:, context : context + steps - 1]
        return F.mse_loss(rolled, true), _error_head_loss(torch.stack(told, 1), rolled, true)


def _share(known: Tensor, part: Part) -> Tensor:
    """Factor that makes sums over ``known`` [B, T - 1] means over all processes' known ones."""
    return part.world / part.gather(known.float().sum(1)).sum().clamp_min(1.0)


def _error_head_loss(told: Tensor, predicted: Tensor, goal: Tensor) -> Tensor:
    actual = error_of(predicted.detach(), goal).clamp_min(1e-6).log()
    return F.smooth_l1_loss(told.float(), actual)


def _own_places(rows: int, length: int, device: torch.device) -> Tensor:
    """Where among [rows * length] frames the outcomes of [rows * (length - 1)] steps stand."""
    start = torch.arange(rows, device=device)[:, None] * length
    return (start + torch.arange(1, length, device=device)).flatten()

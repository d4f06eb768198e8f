"""AIME: the DPGMM variational recurrent autoencoder, whole.

Over a sequence, the Perceiver, the posterior and the LSTM run over all frames at once, since the
posterior reads frames and contexts alone; then the prior, given h_(t-1) and c_(t-1); only the
small recurrence of the attention maps goes step by step.

The decoder reads z_t and the attention that was *predicted* from the step before. Maps fused
with what the frame itself shows would reach it past the KL term, and the bound would be none.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from iwm.errors import ModelError
from iwm.models.aime.attention import AttentionSchema
from iwm.models.aime.codec import Decoder, Encoder
from iwm.models.aime.config import AIMEConfig
from iwm.models.aime.dynamics import Recurrence, shifted
from iwm.models.aime.imagine import Imagined, State, foretold, unroll
from iwm.models.aime.inputs import (
    action_vectors,
    check_actions,
    check_observations,
    checked,
    episode_starts,
)
from iwm.models.aime.perceiver import CausalPerceiver
from iwm.models.aime.prior import COMPONENTS, DPGMMPrior, How, Mixture
from iwm.models.encoder import check_fit, load_state
from iwm.models.saving import WEIGHTS_FILE, read_config, read_weights, save_model
from iwm.objectives.aime import TASKS, LossAggregator
from iwm.objectives.elbo import entropy
from iwm.objectives.gather import Part
from iwm.objectives.gradients import BALANCERS, RGB, Balancer, balanced_loss
from iwm.settings import parse, to_dict

NAME = "vrnn"

# What training needs and a released model does not.
_TRAINING = ("teacher.", "balancer.", "progress")


class Windows(Protocol):
    """What a batch must hold: ``images`` uint8 [B, T, 3, H, W], ``action`` int64 [B, T] in the
    model's vocabulary (-1: none), ``action_vector`` float [B, T, C] or ``None``, ``done`` bool
    [B, T].
    """

    images: Tensor
    action: Tensor
    action_vector: Tensor | None
    done: Tensor


class DPGMMVariationalRecurrentAutoencoder(nn.Module):
    """The five pillars.

    Args:
        trainable: also build what only training needs.
        settings: the fields of :class:`AIMEConfig`, as plain values.

    Raises:
        ConfigError: one line per wrong setting.
    """

    def __init__(self, *, trainable: bool = True, **settings: Any) -> None:
        super().__init__()
        self.config = config = parse(AIMEConfig, settings, "model")
        self.perceiver = CausalPerceiver(config)
        self.encoder = Encoder(config)
        self.prior = DPGMMPrior(config)
        self.recurrence = Recurrence(config)
        self.attention = AttentionSchema(config, self.encoder.features.channels)
        self.decoder = Decoder(config)
        self.aggregator = LossAggregator(config.loss.kl_samples, config.perceiver_config.commitment)
        self._part: Part | None = None
        self._statistics = True
        self.teacher: nn.Module | None = None
        if trainable:
            self.teacher = copy.deepcopy(self.encoder.features).requires_grad_(False)
            self.balancer = self._make_balancer()
            self.progress: Tensor
            self.register_buffer("progress", torch.zeros(()))

    def _make_balancer(self) -> Balancer:
        if not self.config.use_rgb:
            return BALANCERS[self.config.balance]()
        count = sum(p.numel() for p in self.parameters() if p.requires_grad)
        return RGB(**to_dict(self.config.rgb_config)).size(len(TASKS), count)

    # -- over sequences ----------------------------------------------------------------

    def forward_sequence(
        self, observations: Tensor, actions: Tensor, dones: Tensor | None = None
    ) -> dict[str, Any]:
        """Everything the model makes of sequences, T >= 2.

        Args:
            observations: [B, T, 3, H, W], uint8, or float of which [0, 1] is the usual range.
            actions: [B, T, A]; a_t was taken after seeing o_t.
            dones: bool [B, T], True where a_t ended an episode: what follows starts anew.
                ``None``: nowhere.

        Returns:
            ``reconstructions`` [B, T, 3, H, W], ``context`` [B, T, 256], ``z_mean``,
            ``z_logvar``, ``z_posterior`` and ``z_prior`` [B, T, 36], ``pi`` [B, T, 15],
            ``mu_k`` and ``sigma_k`` [B, T, 15, 36], ``h_t`` [B, T, 512], ``attention_maps``
            [B, T, 5, 8, 8], and what the losses need beside these.

        Raises:
            ModelError: another shape than expected, or values that are not finite.
        """
        observations, actions = self._checked(observations, actions)
        batch, length = observations.shape[:2]
        if length < 2:
            raise ModelError(
                f"a sequence of {length} frame is too short; expected [B, T >= 2, ...]"
            )
        starts = episode_starts(batch, length, dones, observations.device)
        seen = self.perceiver(observations, starts)
        frames = observations.flatten(0, 1)
        mean, log_variance, features = self.encoder(frames, seen.context.flatten(0, 1))
        z = mean + torch.randn_like(mean) * torch.exp(0.5 * log_variance)
        mean, log_variance, z = (x.unflatten(0, (batch, length)) for x in (mean, log_variance, z))
        inputs = torch.cat([z.to(seen.context.dtype), seen.context, actions], dim=-1)
        before, hidden, _ = self.recurrence(inputs, starts)
        context_before = shifted(seen.context, self.recurrence.start_context, starts)
        mixture: Mixture = self.prior(before, context_before)
        shape0, rate0 = self.prior.hyperprior
        positions = features.flatten(2).transpose(1, 2)
        attended = self.attention(positions.unflatten(0, (batch, length)), before, z, starts)
        predicted_maps = attended.log_predicted.exp()
        frames = self.decoder(z.flatten(0, 1), predicted_maps.flatten(0, 1))
        return {
            "observations": observations,
            "starts": starts,
            "reconstructions": frames.unflatten(0, (batch, length)),
            "sigma": self.config.loss.sigma,
            "context": seen.context,
            "context_predicted": self.recurrence.next_context(before, context_before, z),
            "token_features": seen.features,
            "token_codes": seen.codes,
            "token_ids": seen.ids,
            "token_frames": seen.frames,
            "next_token_logits": seen.next_logits,
            "z_mean": mean,
            "z_logvar": log_variance,
            "z_posterior": z,
            "z_prior": mixture.draw(),
            "pi": mixture.log_pi.exp(),
            "log_pi": mixture.log_pi,
            "mu_k": mixture.mean,
            "logvar_k": mixture.log_variance,
            "sigma_k": torch.exp(0.5 * mixture.log_variance),
            "stick_a": mixture.stick_a,
            "stick_b": mixture.stick_b,
            "alpha_shape": mixture.alpha_shape,
            "alpha_rate": mixture.alpha_rate,
            "alpha_shape0": shape0,
            "alpha_rate0": rate0,
            "h_t": hidden,
            "attention_maps": attended.maps,
            "attention_before": attended.before,
            "log_attention_bottom_up": attended.log_bottom_up,
            "log_attention_predicted": attended.log_predicted,
            "displacement": attended.displacement,
            "features": positions,
            "teacher_features": self._teacher_features(observations),
        }

    def _teacher_features(self, observations: Tensor) -> Tensor | None:
        """The teacher's features of the frames; in training it first follows the encoder."""
        if self.teacher is None:
            return None
        with torch.no_grad():
            if self.training:
                pairs = zip(
                    self.teacher.parameters(), self.encoder.features.parameters(), strict=True
                )
                for slow, fast in pairs:
                    slow.lerp_(fast, 1 - self.config.teacher_decay)
            found: Tensor = self.teacher(observations.flatten(0, 1))
            return found.flatten(2).transpose(1, 2)

    def compute_total_loss(
        self,
        observations: Tensor,
        actions: Tensor,
        dones: Tensor | None = None,
        *,
        beta: float | None = None,
        part: Part | None = None,
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Loss terms by name, and the outputs they are of.

        Args:
            observations: see :meth:`forward_sequence`.
            actions: the same.
            dones: the same.
            beta: of the KL terms; that of the end of training when ``None``.
            part: rows of a batch that several processes share.
        """
        outputs = self.forward_sequence(observations, actions, dones)
        loss = self.config.loss
        if loss.lambda_open_loop:
            vectors = actions.to(outputs["context"])
            outputs["foretold"] = foretold(self, outputs, vectors, loss.horizon)
        losses, _ = self.aggregator.compute_losses(
            outputs,
            beta=loss.beta if beta is None else beta,
            lambda_recon=loss.lambda_recon,
            lambda_att_dyn=loss.lambda_att_dyn,
            lambda_gram=loss.lambda_gram,
            entropy_weight=loss.entropy_weight,
            lambda_open_loop=loss.lambda_open_loop,
            part=part,
        )
        return losses, outputs

    # -- imagination -------------------------------------------------------------------

    @torch.no_grad()
    def observe(self, observations: Tensor, actions: Tensor, how: How = "mean") -> State:
        """The state after the last of some frames of one episode.

        Args:
            observations: [B, T, 3, H, W], T >= 1.
            actions: [B, T - 1, A], taken between them.
            how: ``sample`` draws the latents, else they are the posterior's means.

        Raises:
            ModelError: see :meth:`forward_sequence`.
        """
        batch, length = observations.shape[:2]
        padded = F.pad(actions, (0, 0, 0, 1))  # the last frame's action is not yet known
        observations, padded = self._checked(observations, padded)
        starts = episode_starts(batch, length, None, observations.device)
        context = self.perceiver(observations, starts).context
        mean, log_variance, features = self.encoder(
            observations.flatten(0, 1), context.flatten(0, 1)
        )
        if how == "sample":
            mean = mean + torch.randn_like(mean) * torch.exp(0.5 * log_variance)
        z = mean.unflatten(0, (batch, length))
        inputs = torch.cat([z, context, padded], dim=-1)
        cell = self.recurrence.start(batch)
        before = cell[0][-1].unsqueeze(1)
        if length > 1:
            before, hidden, cell = self.recurrence(inputs[:, :-1], starts[:, :-1])
            before = torch.cat([before, hidden[:, -1:]], dim=1)
        positions = features.flatten(2).transpose(1, 2).unflatten(0, (batch, length))
        maps = self.attention(positions, before, z, starts).maps
        return State(*cell, z[:, -1], context[:, -1], maps[:, -1])

    @torch.no_grad()
    def imagine(
        self, state: State, actions: Tensor, how: How = "sample", *, frames: bool = True
    ) -> Imagined:
        """Step the prior from a state, without frames to look at.

        Args:
            state: of :meth:`observe`, or the last of an earlier imagination.
            actions: [B, K, A], K >= 1.
            how: what is taken of each step's prior: a sample, its mean, or its heaviest
                component's mean.
            frames: whether to decode what is imagined.

        Raises:
            ModelError: another number of states, or actions of another length.
        """
        check_actions(self.config, actions, len(state.z), None)
        found = unroll(self, state, actions, how)
        if not frames:
            return found
        pictures = self.decoder(found.z.flatten(0, 1), found.attention_maps.flatten(0, 1))
        return replace(found, frames=pictures.clamp(0, 1).unflatten(0, found.z.shape[:2]))

    def rollout(self, obs: Tensor, actions: Tensor, horizon: int, how: How = "sample") -> Imagined:
        """Watch T frames, then imagine ``horizon`` more.

        Args:
            obs: [B, T, 3, H, W], T >= 1.
            actions: [B, T - 1 + horizon, A]: those between the frames, then those to imagine.
            horizon: at least 1.
            how: see :meth:`imagine`.

        Raises:
            ModelError: another number of actions.
        """
        check_observations(self.config, obs)
        known = obs.shape[1] - 1
        if horizon < 1:
            raise ModelError(f"a rollout's horizon is at least 1, given {horizon}")
        check_actions(self.config, actions, len(obs), known + horizon)
        state = self.observe(obs, actions[:, :known], "sample" if how == "sample" else "mean")
        return self.imagine(state, actions[:, known:], how)

    # -- actions --------------------------------------------------------------

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """Names of the discrete actions."""
        return self.config.vocabulary

    def action_vectors(self, ids: Tensor, continuous: Tensor | None = None) -> Tensor:
        """See :func:`iwm.models.aime.inputs.action_vectors`."""
        return action_vectors(self.config, ids, continuous)

    def _checked(self, observations: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        return checked(self.config, observations, actions, self.recurrence.start_context)

    # -- training ----------------------------------------------------------------------

    def before_step(self, seed: int, part: Part | None = None, *, statistics: bool = True) -> None:
        """Told before each step; the randomness is that of torch's own generator.

        Args:
            seed: of the step.
            part: the rows of the global batch that come next; ``None``: all of them.
            statistics: whether the step's logs hold figures beside the losses.
        """
        del seed
        self._part, self._statistics = part, statistics

    def after_step(self, progress: float) -> None:
        """Beta grows with ``progress``, the share of training done."""
        self.progress.fill_(progress)

    @property
    def beta(self) -> float:
        """Weight of the KL terms now."""
        warmup = self.config.loss.beta_warmup
        share = min(1.0, float(self.progress) / warmup) if warmup else 1.0
        return share * self.config.loss.beta

    def blocks(self) -> list[nn.Module]:
        """The repeated parts, each of which is compiled, and sharded, as a unit."""
        return list(self.perceiver.temporal)

    def forward(self, batch: Windows) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and logs of windows [B, T]; ``backward`` gives the balanced gradient.

        Raises:
            ModelError: see :meth:`forward_sequence`.
        """
        part, beta = self._part or Part.whole(len(batch.images)), self.beta
        actions = self.action_vectors(batch.action, batch.action_vector)
        losses, outputs = self.compute_total_loss(
            batch.images, actions, batch.done, beta=beta, part=part
        )
        tasks = [losses[name] for name in TASKS]
        if torch.is_grad_enabled():
            wanted = [p for p in self.parameters() if p.requires_grad]
            loss = balanced_loss(tasks, wanted, self.balancer, part.world)
        else:
            loss = torch.stack(tasks).sum()
        logs = {f"loss_{name}": value.detach() for name, value in losses.items()}
        if self._statistics:
            logs["effective_components"] = losses["entropy"].detach().exp()
            codes = outputs["token_ids"].flatten()
            used = torch.bincount(codes, minlength=self.config.perceiver_config.codebook_size)
            logs["effective_codes"] = entropy(used / used.sum()).exp()
            logs["beta"] = torch.tensor(beta)
        return loss, logs

    # -- on disk -----------------------------------------------------------------------

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the released model: all but what only training needs."""
        released = {
            name: value
            for name, value in self.state_dict().items()
            if not name.startswith(_TRAINING)
        }
        save_model(Path(folder), NAME, to_dict(self.config), released)

    def go_on_from(self, weights: dict[str, Tensor], where: str) -> int:
        """Take another's released weights, but for the components of its prior where it has
        another number of them: these stay as they were made.

        Args:
            weights: by name.
            where: they came from, for errors.

        Returns:
            How many tensors were taken.

        Raises:
            ModelError: names the tensor that does not fit.
        """
        own = {k: v for k, v in self.state_dict().items() if not k.startswith(_TRAINING)}
        fresh = {
            name: value
            for name, value in own.items()
            if name.startswith(COMPONENTS)
            and (name not in weights or weights[name].shape != value.shape)
        }
        taken = {
            name: value
            for name, value in weights.items()
            if name not in fresh and (name in own or not name.startswith(COMPONENTS))
        }
        check_fit(own, {**taken, **fresh}, where)
        self.load_state_dict(taken, strict=False)
        if self.teacher is not None:
            self.teacher.load_state_dict(self.encoder.features.state_dict())
        return len(taken)

    @classmethod
    def from_pretrained(cls, folder: str | Path, *, trainable: bool = False) -> Self:
        """Load a released model, in eval mode, or, if asked, to train on.

        Raises:
            ModelError: missing, damaged, newer, or of another shape than its config says.
        """
        folder = Path(folder)
        model = cls(trainable=False, **read_config(folder, NAME)["settings"])
        load_state(model, read_weights(folder), str(folder / WEIGHTS_FILE))
        if trainable:
            whole = cls(**to_dict(model.config))
            whole.go_on_from(model.state_dict(), str(folder / WEIGHTS_FILE))
            return whole.train()
        return model.eval()


def create(**settings: Any) -> DPGMMVariationalRecurrentAutoencoder:
    """An untrained model from plain settings (the entry in the model registry)."""
    return DPGMMVariationalRecurrentAutoencoder(**settings)

"""The image world model (IWM, Garrido et al., arXiv 2403.00504): Phase 1.

An online encoder sees a masked, jittered, sometimes damaged view; the predictor, told
the exact difference between the views, predicts what the EMA target encoder makes of
the other view. What is released is the target encoder and the predictor.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn

from iwm.data.augment import (
    ACTION_FIELDS,
    AUG_DIM,
    action_scale,
    make_views,
    sample_views,
    to_float,
)
from iwm.data.masking import sample_masks
from iwm.errors import ConfigError, ModelError
from iwm.models.config import IWMConfig
from iwm.models.encoder import Encoder, load_state, take
from iwm.models.predictor import Predictor, normalise
from iwm.models.saving import WEIGHTS_FILE, read_config, read_weights, save_model
from iwm.objectives.collapse import (
    covariance_loss,
    deviation,
    effective_rank,
    sigreg_loss,
    variance_loss,
)
from iwm.objectives.gather import Part
from iwm.objectives.jepa import error_head_loss, inverse_loss, prediction_loss
from iwm.settings import parse, to_dict

NAME = "iwm"


class Frames(Protocol):
    """What a batch must hold: ``images``, uint8 [B, T, 3, H, W]."""

    images: Tensor


@dataclass(frozen=True)
class Prediction:
    """Latents predicted for the state after an action.

    ``z_cls`` [B, D]; ``z_patches`` [B, N, D] or ``None``; ``log_error`` [B]: the predicted
    natural log of the CLS's root mean square error per dimension.
    """

    z_cls: Tensor
    z_patches: Tensor | None
    log_error: Tensor


class IWM(nn.Module):
    """Encoder and predictor, and what trains them.

    Args:
        config: shapes, augmentation and objective.
        trainable: also build the online encoder and the heads that only training needs.
    """

    def __init__(self, config: IWMConfig, *, trainable: bool = True) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.predictor = Predictor(config)
        self.online: Encoder | None = None
        self._draw: tuple[torch.Generator, Part | None] = (torch.default_generator, None)
        self._statistics = True
        if trainable:
            if config.encoder.weights:
                self.encoder.load_timm(config.encoder.weights)
            width = config.encoder.width
            self.online = copy.deepcopy(self.encoder)
            # Heads of terms that are left out are not built: every parameter has a gradient,
            # as distributed training wants.
            if config.objective.inverse:
                self.inverse = nn.Sequential(
                    nn.Linear(2 * width, 2 * width), nn.GELU(), nn.Linear(2 * width, config.aug_dim)
                )
                self.inverse_scale: Tensor
                scale = torch.zeros(config.aug_dim)
                scale[: len(ACTION_FIELDS)] = torch.tensor(action_scale(config.augment))
                self.register_buffer("inverse_scale", scale, persistent=False)
            if config.objective.sigreg:
                # SIGReg needs latents free of LayerNorm's shape: a BatchNorm projector. It reads
                # the latents that are predicted and served; of raw ones it could change a length
                # that normalising takes away again.
                self.projector = nn.Sequential(
                    nn.Linear(width, width, bias=False), nn.BatchNorm1d(width)
                )
        self.encoder.requires_grad_(False)

    # -- what a served model does ------------------------------------------------------

    @property
    def latent_dim(self) -> int:
        """D."""
        return self.config.encoder.width

    @property
    def aug_dim(self) -> int:
        """A, the length of an action vector."""
        return self.config.aug_dim

    @torch.no_grad()
    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Layer-normed latents of whole images.

        Args:
            images: uint8, or float in [0, 1], [B, 3, H, W] of the model's image size.

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
        cls, patches = self.encoder(to_float(images))
        return normalise(cls.float()), normalise(patches.float())

    @torch.no_grad()
    def predict(self, z_cls: Tensor, action: Tensor, z_patches: Tensor | None = None) -> Prediction:
        """Latents after an action. Predicted latents can be fed back in.

        Args:
            z_cls: [B, D].
            action: [B, A] in the units of :data:`iwm.data.augment.ACTION_FIELDS`.
            z_patches: [B, N, D], or ``None`` for CLS-only prediction (one token).
        """
        cls, patches, log_error = self.predictor(z_cls, action, z_patches)
        return Prediction(
            normalise(cls.float()),
            None if patches is None else normalise(patches.float()),
            log_error.float(),
        )

    # -- training ----------------------------------------------------------------------

    def before_step(self, seed: int, part: Part | None = None, *, statistics: bool = True) -> None:
        """Fix the step's randomness: views and masks are drawn for the global batch.

        Every process draws the same global list from ``seed`` and takes its own rows, so the
        number of processes does not change what is trained on.

        Args:
            seed: of the step, the same in every process.
            part: the rows of the global batch that come next; ``None``: all of them.
            statistics: whether the step's logs hold the figures that show collapse.
        """
        self._draw = (torch.Generator().manual_seed(seed), part)
        self._statistics = statistics

    def blocks(self) -> list[nn.Module]:
        """The repeated parts, each of which is compiled, and sharded, as a unit."""
        encoders = [self.encoder] if self.online is None else [self.encoder, self.online]
        return [
            *(block for encoder in encoders for block in encoder.blocks),
            *self.predictor.blocks,
        ]

    def forward(self, batch: Frames) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and logs of one batch; images are uint8 [B, T, 3, H, W], frame 0 is used.

        Their means over processes are those of the global batch, see
        :mod:`iwm.objectives.gather`. Without :meth:`before_step` the draws come from torch's
        global generator.

        Raises:
            ConfigError: too few rows a process for CLS-only ones and others.
        """
        assert self.online is not None, "a model loaded without trainable=True cannot train"
        c, images = self.config.objective, batch.images[:, 0]
        generator, given = self._draw
        part = given or Part.whole(len(images))
        order, alone, alone_everywhere = _alone_first(part, c.cls_only_share)
        index = order + part.rows.start
        drawn = sample_views(part.total, self.config.augment, generator)
        masks = sample_masks(part.total, self.config.grid, self.config.mask, generator)
        parameters = drawn.rows(index).to(images.device)
        mask = masks.rows(index).to(images.device)
        source, target = make_views(images[order.to(images.device)], parameters)
        action = _widen(parameters.action(), self.config.aug_dim)
        with torch.no_grad():
            goal_cls, goal_patches = (normalise(z.float()) for z in self.encoder(target))

        # The first rows are predicted from CLS alone, their frames encoded whole: what a
        # client that keeps only z_cls asks for. The others see the visible tokens.
        some = part.weight(alone, alone_everywhere) if alone else 0.0
        rest = part.weight(len(order) - alone, part.total - alone_everywhere)
        every = part.weight(len(order), part.total)
        terms: dict[str, tuple[float, Tensor]] = {}
        sources, predictions, log_errors = [], [], []
        if alone:
            cls, _ = self.online(source[:alone])
            predicted, _, log_error = self.predictor(cls, action[:alone])
            terms["cls_only"] = (c.cls_only, some * prediction_loss(predicted, goal_cls[:alone]))
            sources, predictions, log_errors = [cls], [predicted], [log_error]
        visible, hidden = mask.visible[alone:], mask.hidden[alone:]
        cls, patches = self.online(source[alone:], visible)
        predicted, inpainted, log_error = self.predictor(
            cls, action[alone:], patches, visible, hidden
        )
        terms["cls"] = (c.cls, rest * prediction_loss(predicted, goal_cls[alone:]))
        terms["patch"] = (
            c.patch,
            rest * prediction_loss(inpainted, take(goal_patches[alone:], hidden)),
        )
        predicted = torch.cat([*predictions, predicted])
        log_error = torch.cat([*log_errors, log_error])
        terms["error_head"] = (1.0, every * error_head_loss(log_error, predicted, goal_cls))

        source_cls = normalise(torch.cat([*sources, cls]).float())
        if c.inverse:
            # Hidden tokens hide part of a frame's colours: whole frames only, if there are any.
            rows = slice(0, alone or len(order))
            recovered = self.inverse(torch.cat([source_cls[rows], goal_cls[rows]], dim=-1))
            lost = inverse_loss(recovered, action[rows], self.inverse_scale)
            terms["inverse"] = (c.inverse, (some or every) * lost)
        if c.invariance:
            terms["invariance"] = (c.invariance, every * prediction_loss(source_cls, goal_cls))
        if c.variance or c.covariance or c.sigreg:
            everyone = part.gather(source_cls)
        if c.variance or c.covariance:
            terms["variance"] = (c.variance, variance_loss(everyone))
            terms["covariance"] = (c.covariance, covariance_loss(everyone))
        if c.sigreg:
            directions = torch.randn(self.latent_dim, c.sigreg_projections, generator=generator)
            # Every process projects all rows: BatchNorm's statistics are the global ones.
            projected = self.projector(everyone)
            terms["sigreg"] = (c.sigreg, sigreg_loss(projected, directions.to(images.device)))

        loss = torch.stack([weight * value for weight, value in terms.values()]).sum()
        logs = {f"loss_{name}": value.detach() for name, (_, value) in terms.items()}
        if self._statistics:
            goals = part.gather(goal_cls)
            logs["effective_rank"] = effective_rank(goals)
            logs["mean_std"] = deviation(goals).mean()
            logs["min_std"] = deviation(goals).min()
        return loss, logs

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        """Move the target encoder: momentum from ``ema_start`` to 1, linear in progress."""
        assert self.online is not None
        momentum = self.config.ema_start + (1 - self.config.ema_start) * min(1.0, progress)
        own: list[Tensor] = list(self.encoder.parameters())
        others: list[Tensor] = list(self.online.parameters())
        torch._foreach_lerp_(own, others, 1 - momentum)

    # -- on disk -----------------------------------------------------------------------

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the released model: target encoder and predictor."""
        released = {
            name: value
            for name, value in self.state_dict().items()
            if name.startswith(("encoder.", "predictor."))
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
        model = cls(config) if trainable else cls(config, trainable=False)
        weights = read_weights(folder)
        released = nn.ModuleDict({"encoder": model.encoder, "predictor": model.predictor})
        load_state(released, weights, str(folder / WEIGHTS_FILE))
        if model.online is not None:
            model.online.load_state_dict(model.encoder.state_dict())
        return model.train(trainable)


def model_config(settings: dict[str, Any], where: str = "model") -> IWMConfig:
    """Typed settings from plain ones.

    Raises:
        ConfigError: one line per wrong key.
    """
    return parse(IWMConfig, settings, where)


def create(**settings: Any) -> IWM:
    """An untrained model from plain settings (the entry in the model registry)."""
    return IWM(model_config(settings))


def _alone_first(part: Part, share: float) -> tuple[Tensor, int, int]:
    """Local rows, CLS-only ones first, and how many those are: here and in all processes.

    Raises:
        ConfigError: a process has no row of one of the two kinds.
    """
    everywhere = min(round(share * part.total), part.total - 1)
    marked = part.spread(everywhere)
    alone = int(marked.sum())
    if everywhere and not 0 < alone < len(marked):
        raise ConfigError(
            f"train.batch_size {part.total} over {part.world} processes gives one of them {alone} "
            f"CLS-only rows of {len(marked)}; take fewer processes or a larger batch"
        )
    return marked.long().argsort(descending=True, stable=True), alone, everywhere


def _widen(action: Tensor, width: int) -> Tensor:
    """Pad action vectors [B, AUG_DIM] with zeros to the model's ``aug_dim``, or cut zeros."""
    if width <= AUG_DIM:
        return action[:, :width]
    return torch.cat([action, action.new_zeros(len(action), width - AUG_DIM)], dim=1)

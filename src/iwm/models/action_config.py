"""Configuration of the action-conditioned model. Plain values only."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from iwm.errors import ConfigError
from iwm.models.config import EncoderConfig, Positive, Share, Weight, check_shapes
from iwm.settings import settings


@settings
class DynamicsConfig:
    """The latent dynamics: a causal transformer over CLS latents, and one over patches."""

    width: Positive = 768
    depth: Positive = 8
    heads: Positive = 12
    mlp_ratio: Annotated[float, Field(gt=0)] = 4.0
    dropout: Share = 0.0
    patch_depth: Positive = 4
    """Blocks that predict the patches, given the dynamics' own feature and the action."""


@settings
class ActionObjectiveConfig:
    """Weights of the training loss; a weight of 0 leaves the term out."""

    prediction: Weight = 1.0
    """The next CLS, from real latents. This and the two below leave the encoder alone."""
    rollout: Weight = 1.0
    """The same from predicted latents, several steps on."""
    patches: Weight = 1.0
    """The next patches, from patches."""
    contrast: Weight = 1.0
    """A prediction is nearer to its own outcome than to every other frame of the batch."""
    action_contrast: Weight = 1.0
    """Of all actions, the one taken predicts the outcome best."""
    inverse: Weight = 1.0
    """Recover the action from two successive CLS."""
    variance: Weight = 0.0
    covariance: Weight = 0.0
    """VICReg's terms on CLS."""
    temperature: Annotated[float, Field(gt=0)] = 0.1
    """Of both contrasts, in mean squared difference per dimension; learned from there."""
    rollout_steps: tuple[Positive, Positive] = (2, 8)
    """Steps of the rollouts at the beginning and at the end of training."""
    negatives: Positive = 4
    """Alternatives to a continuous action, drawn from the batch."""


@settings
class ActionAugmentConfig:
    """Changes to whole windows that leave the dynamics true."""

    mirror: tuple[tuple[str, str], ...] = ()
    """Pairs of actions that a left-right mirror exchanges; mirrored windows join the data."""
    mirror_share: Share = 0.5
    """Share of the windows mirrored, where ``mirror`` names a pair."""
    jitter_share: Share = 0.0
    """Share of the windows whose frames get a colour jitter each. The differences between
    successive frames' jitters are the augmentation part of the actions."""
    jitter: tuple[float, float, float, float] = (0.3, 0.3, 0.4, 0.3)
    """Largest brightness, contrast, saturation (log2) and hue (radians)."""


@settings
class ActionConfig:
    """One action-conditioned world model."""

    image_size: tuple[Positive, Positive] = (224, 224)
    """Height, width in pixels."""
    fit: Literal["resize", "crop"] = "crop"
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    vocabulary: tuple[str, ...] = ()
    """Names of the discrete actions, in the order of the one-hot part of an action vector."""
    action_dim: Annotated[int, Field(ge=0, le=256)] = 0
    """Numbers of a continuous action."""
    history: Annotated[int, Field(gt=0, le=64)] = 4
    """Frames that a prediction attends to at most, the present one included."""
    encoder: EncoderConfig = EncoderConfig(pool="flat")
    dynamics: DynamicsConfig = DynamicsConfig()
    objective: ActionObjectiveConfig = ActionObjectiveConfig()
    augment: ActionAugmentConfig = ActionAugmentConfig()

    def __post_init__(self) -> None:
        """Refuse shapes and names that do not fit together."""
        check_shapes(self.image_size, self.encoder, dynamics=self.dynamics)
        if len(set(self.vocabulary)) != len(self.vocabulary):
            raise ConfigError(f"model.vocabulary names an action twice: {list(self.vocabulary)}")
        if not self.vocabulary and not self.action_dim:
            raise ConfigError("model: no actions; vocabulary is empty and action_dim is 0")
        o = self.objective
        if not (o.contrast or o.action_contrast or o.inverse):
            raise ConfigError(
                "model.objective: contrast, action_contrast and inverse are all 0; nothing would "
                "teach the encoder"
            )
        for pair in self.augment.mirror:
            for name in pair:
                if name not in self.vocabulary:
                    raise ConfigError(
                        f"model.augment.mirror names {name!r}, which is not an action of the "
                        f"data: {', '.join(self.vocabulary)}"
                    )

    @property
    def grid(self) -> tuple[int, int]:
        """Token rows and columns."""
        height, width = self.image_size
        return height // self.encoder.patch, width // self.encoder.patch

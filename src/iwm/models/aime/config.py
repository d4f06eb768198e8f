"""Configuration of AIME. The defaults are the source document's; plain values only."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from iwm.errors import ConfigError
from iwm.models.config import Positive, Share, Weight
from iwm.settings import settings

STRIDE = 8
"""Pixels per token side: 64x64 frames have 8x8 tokens."""

PositiveFloat = Annotated[float, Field(gt=0)]


@settings
class PerceiverConfig:
    """Pillar 1: tokens of a frame, and a causal context over frames."""

    codebook_size: Positive = 256
    context_dim: Positive = 256
    token_dim: Positive = 64
    """Numbers of a code."""
    width: Positive = 128
    """Of the tokens and latent queries."""
    num_latents: Positive = 8
    heads: Positive = 4
    temporal_layers: Positive = 2
    reach: Positive = 32
    """Frames that a context attends to at most, its own included."""
    commitment: Weight = 0.25
    decay: Share = 0.99
    """Of the codebook's moving averages."""
    dead_below: Weight = 2.0
    """Codes with fewer uses (a moving average of uses a batch) are set to a token of the batch."""


@settings
class CodecConfig:
    """The variational encoder, or the decoder."""

    base_channels: Positive = 32
    """Channels at half size; doubled at each halving."""


@settings
class AttentionConfig:
    """Pillar 4: the attention schema."""

    num_slots: Positive = 5
    slot_dim: Positive = 64
    iterations: Positive = 3
    predictor_channels: Positive = 32


@settings
class RGBConfig:
    """Pillar 5: rotation-based gradient balancing."""

    mu: Annotated[float, Field(ge=0, lt=1)] = 0.9
    lambd: Weight = 1.0
    alpha_steps: Annotated[int, Field(ge=0)] = 3
    alpha_lr: PositiveFloat = 0.2


@settings
class PriorConfig:
    """Pillar 2: the mixture prior."""

    width: Positive = 256
    """Of the network that conditions it."""
    alpha_shape: PositiveFloat = 3.0
    alpha_rate: PositiveFloat = 1.0
    """Gamma prior of the concentration alpha to begin with; both are learned. Each stick pays
    E[log alpha]'s distance from log E[alpha], some 1 / (2 shape) nats a frame."""
    spread: Weight = 0.1
    """Deviation of the components' means about their common one, to begin with."""


@settings
class LossConfig:
    """Weights of the losses."""

    beta: Weight = 1.0
    """Of the KL terms, at the end of the warm-up."""
    beta_warmup: Share = 0.2
    """Share of training over which beta grows from 0."""
    sigma: PositiveFloat = 1.0
    """Deviation of a pixel in [0, 1] about its reconstruction: the likelihood of the bound."""
    kl_samples: Positive = 10
    lambda_recon: Weight = 1.0
    lambda_att_dyn: Weight = 0.1
    lambda_gram: Weight = 0.05
    entropy_weight: Weight = 0.1
    lambda_open_loop: Weight = 0.0
    """Of the frames that the prior foretells from the window's beginning, a part of the
    Predictive task; 0, the source document's, leaves it out."""
    horizon: Positive = 8
    """Frames of a window, its last, that are so foretold."""


@settings
class AIMEConfig:
    """One DPGMM variational recurrent autoencoder."""

    image_size: tuple[Positive, Positive] = (64, 64)
    """Height, width in pixels."""
    fit: Literal["resize", "crop"] = "resize"
    """How the frames it learned from were brought to that size (see ``shard.fit``)."""
    vocabulary: tuple[str, ...] = ()
    """Names of the discrete actions, in the order of the one-hot part of an action vector."""
    action_dim: Annotated[int, Field(ge=0, le=256)] = 6
    """Numbers of a continuous action, after the one-hot part."""
    perceiver_config: PerceiverConfig = PerceiverConfig()
    max_components: Positive = 15
    """1 is a single Gaussian prior."""
    latent_dim: Positive = 36
    prior_config: PriorConfig = PriorConfig()
    encoder_config: CodecConfig = CodecConfig()
    decoder_config: CodecConfig = CodecConfig()
    hidden_dim: Positive = 512
    n_lstm_layers: Positive = 1
    use_orthogonal: bool = True
    attention_config: AttentionConfig = AttentionConfig()
    use_rgb: bool = False
    """Balance the tasks' gradients by rotation; else ``balance`` says what. The source document
    has it on; in our benchmark the mean of unit gradients did better, see docs/aime.md."""
    rgb_config: RGBConfig = RGBConfig()
    balance: Literal["sum", "unit"] = "unit"
    """Without RGB: the losses' plain sum, or the mean of unit gradients."""
    teacher_decay: Share = 0.996
    """Of the moving average that the Gram anchoring compares with."""
    loss: LossConfig = LossConfig()

    def __post_init__(self) -> None:
        """Refuse shapes and names that do not fit together."""
        if any(size % STRIDE for size in self.image_size):
            raise ConfigError(
                f"model.image_size {list(self.image_size)} is not a multiple of {STRIDE}"
            )
        if len(set(self.vocabulary)) != len(self.vocabulary):
            raise ConfigError(f"model.vocabulary names an action twice: {list(self.vocabulary)}")
        if not self.action_width:
            raise ConfigError("model: no actions; vocabulary is empty and action_dim is 0")
        p = self.perceiver_config
        for name, width in (("width", p.width), ("context_dim", p.context_dim)):
            if width % p.heads:
                raise ConfigError(
                    f"model.perceiver_config.{name} {width} is not a multiple of heads {p.heads}"
                )

    @property
    def action_width(self) -> int:
        """Length of an action vector."""
        return len(self.vocabulary) + self.action_dim

    @property
    def grid(self) -> tuple[int, int]:
        """Token rows and columns."""
        height, width = self.image_size
        return height // STRIDE, width // STRIDE

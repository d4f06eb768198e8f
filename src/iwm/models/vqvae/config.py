"""Configuration of the tokenizer and of the token dynamics. Plain values only."""

from __future__ import annotations

from math import log2, prod
from typing import Annotated, Literal

from pydantic import Field

from iwm.errors import ConfigError
from iwm.models.config import Positive, Share, Weight
from iwm.settings import settings

Reach = Annotated[int, Field(ge=0, le=8)]
Level = Annotated[int, Field(ge=3, le=64)]


@settings
class QuantiserConfig:
    """How a latent vector becomes one of a finite number of tokens."""

    kind: Literal["ema", "fsq", "lfq"] = "fsq"
    """``ema``: the nearest of a codebook that follows its members' moving average (VQ-VAE,
    arXiv 1711.00937). ``fsq``: every number of a short vector rounded to a few levels
    (arXiv 2309.15505). ``lfq``: only its sign (arXiv 2310.05737)."""
    codes: Annotated[int, Field(ge=2, le=2**18)] = 1024
    """Codebook size of ``ema`` and ``lfq`` (there a power of two)."""
    dim: Positive = 16
    """Length of a code vector under ``ema``; ``fsq`` and ``lfq`` have one number a digit."""
    levels: tuple[Level, ...] = (8, 5, 5, 5)
    """Of each number under ``fsq``; their product is the codebook size."""
    decay: Share = 0.99
    """Of the moving averages: of the codes under ``ema``, else of the latents' mean and
    covariance."""
    dead_code: Annotated[float, Field(ge=0)] = 2.0
    """Under ``ema``, a code with fewer members than this in a step's moving average begins
    anew at a random latent of the step."""
    commitment: Weight = 0.25
    """Weight of the pull of latents to their codes, under ``ema`` and ``lfq``."""
    entropy: Weight = 0.1
    """Weight under ``lfq`` of the loss that makes single latents sure and all codes used."""

    def __post_init__(self) -> None:
        """Refuse a codebook that ``lfq`` cannot have."""
        if self.kind == "lfq" and self.codes & (self.codes - 1):
            raise ConfigError(
                f"model.quantiser.codes {self.codes} is no power of two, as lfq needs"
            )
        if self.kind == "fsq" and not self.levels:
            raise ConfigError("model.quantiser.levels is empty")

    @property
    def digits(self) -> tuple[int, ...]:
        """A token as digits that mean something by themselves: values of each digit."""
        if self.kind == "ema":
            return (self.codes,)
        return self.levels if self.kind == "fsq" else (2,) * int(log2(self.codes))

    @property
    def codebook_size(self) -> int:
        """Number of different tokens."""
        return prod(self.digits)

    @property
    def width(self) -> int:
        """Length of a token's code vector."""
        return self.dim if self.kind == "ema" else len(self.digits)


@settings
class VQVAEConfig:
    """The tokenizer. The defaults are the full size, for 256x256 pixels; 30 M parameters.

    The encoder folds ``stem`` x ``stem`` pixels into channels, then halves the picture between
    the entries of ``channels``; so a token stands for ``stem * 2 ** (len(channels) - 1)``
    pixels a side. The decoder is its mirror.
    """

    image_size: tuple[Positive, Positive] = (256, 256)
    """Height, width in pixels."""
    fit: Literal["resize", "crop"] = "resize"
    """How the frames it learned from were brought to that size (see ``shard.fit``)."""
    stem: Positive = 2
    """Pixels a side that become one position of the finest level."""
    channels: tuple[Positive, ...] = (128, 256, 512)
    """Channels of each level, from the finest to that of the tokens."""
    blocks: Positive = 2
    """Residual blocks a level, in the encoder."""
    decoder_blocks: Positive = 2
    """Residual blocks a level, in the decoder."""
    attention: Literal["both", "decoder", "none"] = "both"
    """Where there is self-attention among the tokens' positions: in encoder and decoder, or
    where it costs a third of a small model's time, in the decoder alone."""
    heads: Positive = 8
    groups: Positive = 32
    """Of the GroupNorms; fewer where a level's channels do not divide."""
    quantiser: QuantiserConfig = QuantiserConfig()
    absolute: Weight = 0.1
    """Weight of the absolute error beside the squared one's 1: edges stay sharper."""

    def __post_init__(self) -> None:
        """Refuse shapes that do not fit together."""
        if not self.channels:
            raise ConfigError("model.channels is empty")
        if any(size % self.patch for size in self.image_size):
            raise ConfigError(
                f"model.image_size {list(self.image_size)} is not a multiple of {self.patch}, the "
                "pixels a token side that model.stem and model.channels make"
            )
        if self.attention != "none" and self.channels[-1] % self.heads:
            raise ConfigError(
                f"model.channels: {self.channels[-1]} is not a multiple of model.heads {self.heads}"
            )

    @property
    def patch(self) -> int:
        """Pixels a side of what one token stands for."""
        return int(self.stem * 2 ** (len(self.channels) - 1))

    @property
    def grid(self) -> tuple[int, int]:
        """Token rows and columns."""
        return self.image_size[0] // self.patch, self.image_size[1] // self.patch

    @property
    def bits_per_image(self) -> float:
        """Bits that a picture's tokens take at log2(codebook size) each."""
        return prod(self.grid) * log2(self.quantiser.codebook_size)


@settings
class TokenDynamicsConfig:
    """Block-causal transformer over frames of tokens and the actions between them."""

    image_size: tuple[Positive, Positive] = (256, 256)
    """Height, width in pixels: the tokenizer's."""
    fit: Literal["resize", "crop"] = "resize"
    """How the frames it learned from were brought to that size (see ``shard.fit``)."""
    vocabulary: tuple[str, ...] = ()
    """Names of the actions; empty: the dynamics are told none."""
    tokenizer: VQVAEConfig = VQVAEConfig()
    """The shape of the frozen tokenizer; filled in from ``init_from`` when training."""
    context: Positive = 4
    """Frames that a prediction attends to in each block, the present one included."""
    group: Positive = 2
    """Tokens a side of the block that one position of the transformer stands for."""
    width: Positive = 768
    depth: Positive = 12
    heads: Positive = 12
    mlp_ratio: Annotated[float, Field(gt=0)] = 4.0
    dropout: Share = 0.1
    detail: Positive = 256
    """Channels of the convolutions at single tokens that begin and end the dynamics."""
    reach: tuple[Reach, Reach] = (2, 6)
    """Tokens, up or down and to the sides, from which a token of the next frame is copied:
    turning moves a view further across than anything moves it down."""
    own_share: Annotated[float, Field(ge=0, le=0.5)] = 0.3
    """Share of input frames that are the model's own predictions in the second half of
    training (grown to from 0), so that dreams stay near what it has learned from."""
    action_dropout: Share = 0.1
    """Share of windows whose actions are hidden, so that "not known" means something."""

    def __post_init__(self) -> None:
        """Refuse shapes that do not fit together."""
        if self.width % self.heads:
            raise ConfigError(
                f"model.width {self.width} is not a multiple of model.heads {self.heads}"
            )
        if self.image_size != self.tokenizer.image_size:
            raise ConfigError(
                f"model.image_size {list(self.image_size)} is not the tokenizer's, "
                f"{list(self.tokenizer.image_size)}"
            )
        if any(side % self.group for side in self.tokenizer.grid):
            raise ConfigError(
                f"model.group {self.group} does not divide the tokenizer's grid "
                f"{list(self.tokenizer.grid)}"
            )
        if len(set(self.vocabulary)) != len(self.vocabulary):
            raise ConfigError(f"model.vocabulary names an action twice: {list(self.vocabulary)}")

    @property
    def blocks_grid(self) -> tuple[int, int]:
        """Rows and columns of the transformer's positions in a frame."""
        rows, columns = self.tokenizer.grid
        return rows // self.group, columns // self.group

"""Configuration of the models. Plain values only: importing this costs nothing."""

from __future__ import annotations

from typing import Annotated, Literal, Protocol

from pydantic import Field

from iwm.data.config import AugmentConfig, MaskConfig
from iwm.errors import ConfigError
from iwm.settings import settings

Positive = Annotated[int, Field(gt=0)]
Weight = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Variant = Literal["core", "invariant", "equivariant"]

# Predictor depth and dropout of the three variants (spec of the source documents).
VARIANT_PREDICTOR: dict[str, tuple[int, float]] = {
    "core": (8, 0.10),
    "invariant": (4, 0.15),
    "equivariant": (16, 0.05),
}


@settings
class EncoderConfig:
    """A timm VisionTransformer. The defaults are ViT-B/16."""

    patch: Positive = 16
    """Pixels per token side."""
    stem: Literal["patch", "conv"] = "patch"
    """``patch``: one linear map per patch (timm's weights fit). ``conv``: a few strided
    convolutions with the same token grid; hidden tokens are blanked in the pixels."""
    width: Positive = 768
    depth: Positive = 12
    heads: Positive = 12
    mlp_ratio: Annotated[float, Field(gt=0)] = 4.0
    pool: Literal["cls", "cls+mean", "flat"] = "cls"
    """What becomes z_cls: the CLS token; its sum with the patches' mean, which makes global
    colour and light readable from the first step, as short runs need; or one linear map of all
    patch tokens side by side, which keeps where things are, as telling actions apart needs."""
    readout_channels: Positive | None = None
    """Under ``flat``: numbers kept of each patch token; ``None`` keeps all, which for many
    tokens makes the map large."""
    weights: str | None = None
    """A local safetensors file of a timm ViT of this shape to start from."""
    activation_checkpointing: bool = False


@settings
class PredictorConfig:
    """The latent predictor."""

    width: Positive = 768
    depth: Positive | None = None
    """``None``: what the variant says."""
    dropout: Share | None = None
    """``None``: what the variant says."""
    heads: Positive = 12
    mlp_ratio: Annotated[float, Field(gt=0)] = 4.0
    conditioning: Literal["feature", "sequence", "adaln", "none"] = "feature"
    """Where the action enters: joined to the query tokens by an MLP, as tokens of its own,
    or as zero-initialised adaptive LayerNorm in every block. ``none``: nowhere."""
    action_tokens: Positive = 1
    """Tokens of the action under ``sequence``."""
    activation_checkpointing: bool = False
    """Compute the blocks anew in the backward pass instead of keeping what they computed."""


@settings
class ObjectiveConfig:
    """Weights of the training loss; a weight of 0 leaves the term out."""

    patch: Weight = 1.0
    """Hidden patches, predicted from visible patches, CLS and action."""
    cls: Weight = 1.0
    """CLS, predicted from the same."""
    cls_only: Weight = 1.0
    """CLS, predicted from CLS and action alone."""
    cls_only_share: Share = 0.25
    """Share of each batch whose patch tokens are all dropped before the predictor."""
    inverse: Weight = 0.0
    """Recover the action vector from the two views' CLS: keeps latents equivariant."""
    invariance: Weight = 0.0
    """Pull both views' CLS together: the opposite of ``inverse``."""
    variance: Weight = 0.0
    covariance: Weight = 0.0
    """VICReg's terms on the online latents."""
    sigreg: Weight = 0.0
    """LeJEPA's Gaussian regulariser on projected CLS."""
    sigreg_projections: Positive = 1024


@settings
class IWMConfig:
    """One image world model."""

    variant: Variant = "core"
    image_size: tuple[Positive, Positive] = (224, 224)
    """Height, width in pixels."""
    fit: Literal["resize", "crop"] = "crop"
    """How the frames it learned from were brought to that size (see ``shard.fit``); the
    service does the same to a client's pictures."""
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """Normalisation of RGB in [0, 1]; timm's augreg ViT-B/16 uses 0.5."""
    aug_dim: Annotated[int, Field(ge=9)] = 16
    encoder: EncoderConfig = EncoderConfig()
    predictor: PredictorConfig = PredictorConfig()
    augment: AugmentConfig = AugmentConfig()
    mask: MaskConfig = MaskConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    ema_start: Share = 0.996
    """Momentum of the target encoder at the first step; it grows linearly to 1."""

    def __post_init__(self) -> None:
        """Refuse shapes that do not fit together."""
        check_shapes(self.image_size, self.encoder, predictor=self.predictor)

    @property
    def grid(self) -> tuple[int, int]:
        """Token rows and columns."""
        height, width = self.image_size
        return height // self.encoder.patch, width // self.encoder.patch

    @property
    def predictor_depth(self) -> int:
        """Blocks of the predictor."""
        return self.predictor.depth or VARIANT_PREDICTOR[self.variant][0]

    @property
    def predictor_dropout(self) -> float:
        """Dropout of the predictor."""
        given = self.predictor.dropout
        return VARIANT_PREDICTOR[self.variant][1] if given is None else given


class _Transformer(Protocol):
    @property
    def width(self) -> int: ...
    @property
    def heads(self) -> int: ...


def check_shapes(
    image_size: tuple[int, int], encoder: EncoderConfig, **others: _Transformer
) -> None:
    """Refuse images that are no whole patches, and widths that are no whole heads.

    Raises:
        ConfigError: names the setting.
    """
    if any(size % encoder.patch for size in image_size):
        raise ConfigError(
            f"model.image_size {list(image_size)} is not a multiple of "
            f"model.encoder.patch {encoder.patch}"
        )
    for name, part in {"encoder": encoder, **others}.items():
        if part.width % part.heads:
            raise ConfigError(
                f"model.{name}.width {part.width} is not a multiple of "
                f"model.{name}.heads {part.heads}"
            )

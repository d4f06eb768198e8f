"""Two views of one frame whose exact difference is the action vector.

Both views share a crop and a flip. Colour jitter is built so that jitters form a
**commutative group**: with luma :math:`Y` (linear, grey-preserving), mean luma
:math:`m` and chroma :math:`C = x - Y`,

* brightness multiplies everything by :math:`2^b`;
* contrast scales about the frame's own mean luma: :math:`m + 2^c (x - m)`;
* saturation scales the chroma by :math:`2^s`;
* hue rotates the chroma plane by :math:`h` radians.

Luma and chroma never mix, and contrast keeps :math:`m`, so the four commute and
``jitter(jitter(x, p), q) == jitter(x, p + q)`` exactly (views are therefore not
clamped to [0, 1]). With source jitter :math:`p_s`, target jitter :math:`p_t` and the
source's destructive operations :math:`D`:

* target = jitter(cropped, :math:`p_t`)
* source = D(jitter(cropped, :math:`p_s`))

The action vector holds :math:`p_t - p_s` and D's indicators and strengths. It
determines the map between the views: source == D(jitter(target, -(p_t - p_s))),
which is what :func:`source_from_target` does and what the property test checks.
This is IWM's conditioning (Garrido et al., arXiv 2403.00504, section 3) with the
parameters of the transforms that were really applied.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn import functional as F

from iwm.data.config import AugmentConfig

AUG_DIM = 16
ACTION_FIELDS = (
    "brightness",  # target minus source, stops
    "contrast",  # target minus source, log2
    "saturation",  # target minus source, log2
    "hue",  # target minus source, radians
    "blur",  # 1 where the source was blurred
    "blur_sigma",  # percent of the frame's height; 0 without blur
    "greyscale",  # 1 where the source lost its colour
    "solarize",  # 1 where the source was solarized
    "solarize_threshold",  # 0 without solarize
)
"""Meaning of the action vector's first entries; the rest of AUG_DIM is zero."""
JITTER = 4

_LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class ViewParameters:
    """What is done to each of B frames. All tensors are float32 with B rows.

    ``crop`` [B, 4]: centre x, centre y (in [-1, 1], grid_sample's coordinates), half
    width, half height (shares); ``flip`` [B] in {0, 1}; ``source``/``target`` [B, 4]:
    jitter (b, c, s, h); ``blur`` [B]: sigma as a share of the height, 0 for none;
    ``greyscale`` [B] in {0, 1}; ``solarize`` [B]: threshold, 0 for none.
    """

    crop: Tensor
    flip: Tensor
    source: Tensor
    target: Tensor
    blur: Tensor
    greyscale: Tensor
    solarize: Tensor

    def rows(self, index: slice | Tensor) -> ViewParameters:
        """The parameters of some of the frames (a rank's share of the batch)."""
        return ViewParameters(**{f.name: getattr(self, f.name)[index] for f in fields(self)})

    def to(self, device: torch.device) -> ViewParameters:
        """The same parameters on another device."""
        return ViewParameters(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})

    def action(self) -> Tensor:
        """The action vectors [B, AUG_DIM] that separate source from target."""
        vector = self.source.new_zeros(len(self.source), AUG_DIM)
        vector[:, :JITTER] = self.target - self.source
        vector[:, 4] = (self.blur > 0).float()
        vector[:, 5] = 100 * self.blur
        vector[:, 6] = self.greyscale
        vector[:, 7] = (self.solarize > 0).float()
        vector[:, 8] = self.solarize
        return vector


def action_scale(config: AugmentConfig) -> tuple[float, ...]:
    """Typical size of each of ACTION_FIELDS; 0 where the configuration never uses it."""
    return (
        config.brightness,
        config.contrast,
        config.saturation,
        config.hue,
        float(config.blur > 0),
        100 * config.blur_sigma[1] * (config.blur > 0),
        float(config.greyscale > 0),
        float(config.solarize > 0),
        float(config.solarize > 0),
    )


def _uniform(n: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(n, generator=generator)


def sample_jitter(n: int, config: AugmentConfig, generator: torch.Generator) -> Tensor:
    """Jitters [n, 4] uniform within the configured strengths (a CPU generator)."""
    strength = torch.tensor([config.brightness, config.contrast, config.saturation, config.hue])
    return (2 * torch.rand(n, JITTER, generator=generator) - 1) * strength


def sample_views(n: int, config: AugmentConfig, generator: torch.Generator) -> ViewParameters:
    """Draw the parameters of n frames' views, on the CPU (the same on every device)."""
    half = torch.stack([_uniform(n, config.crop_min, 1.0, generator) for _ in range(2)], 1)
    centre = (2 * torch.rand(n, 2, generator=generator) - 1) * (1 - half)

    def sometimes(probability: float, low: float, high: float) -> Tensor:
        strength = _uniform(n, low, high, generator)
        return strength * (torch.rand(n, generator=generator) < probability)

    return ViewParameters(
        crop=torch.cat([centre, half], 1),
        flip=(torch.rand(n, generator=generator) < config.flip).float(),
        source=sample_jitter(n, config, generator),
        target=sample_jitter(n, config, generator),
        blur=sometimes(config.blur, *config.blur_sigma),
        greyscale=sometimes(config.greyscale, 1.0, 1.0),
        solarize=sometimes(config.solarize, *config.solarize_threshold),
    )


def to_float(images: Tensor) -> Tensor:
    """uint8 [B, 3, H, W] in 0..255 to float32 in [0, 1]; floats pass through."""
    return images.float() / 255 if images.dtype == torch.uint8 else images.float()


def crop_flip(images: Tensor, crop: Tensor, flip: Tensor) -> Tensor:
    """The shared geometry: crop, resize back to H x W (bilinear), flip. [B, 3, H, W]."""
    theta = images.new_zeros(len(images), 2, 3)
    theta[:, 0, 0] = crop[:, 2] * (1 - 2 * flip)
    theta[:, 1, 1] = crop[:, 3]
    theta[:, :, 2] = crop[:, :2]
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def luma(images: Tensor) -> Tensor:
    """Rec. 601 luma [B, 1, H, W]; keeps greys (the weights sum to 1)."""
    return (images * images.new_tensor(_LUMA).view(1, 3, 1, 1)).sum(1, keepdim=True)


def _chroma_rotation(angle: Tensor) -> Tensor:
    """Matrices [B, 3, 3] that rotate chroma by ``angle`` and leave luma alone.

    Chroma lies in the plane orthogonal to the luma weights. With u, v an orthonormal
    basis of it the rotation is R = cos (uu' + vv') + sin (vu' - uv').
    """
    weights = angle.new_tensor(_LUMA)
    u = torch.stack([weights[1], -weights[0], weights.new_zeros(())])
    u = u / u.norm()
    v = torch.linalg.cross(weights / weights.norm(), u)
    plane = torch.outer(u, u) + torch.outer(v, v)
    turn = torch.outer(v, u) - torch.outer(u, v)
    return angle.cos().view(-1, 1, 1) * plane + angle.sin().view(-1, 1, 1) * turn


def jitter(images: Tensor, parameters: Tensor) -> Tensor:
    """Colour jitter (b, c, s, h) [B, 4] of float images [B, 3, H, W]; not clamped.

    Brightness, contrast, saturation and hue are one linear map of luma and chroma, so
    the order does not matter and parameters of successive jitters add up.
    """
    gain, contrast, saturation = (torch.exp2(parameters[:, i]).view(-1, 1, 1, 1) for i in range(3))
    grey = luma(images)
    mean = grey.mean(dim=(2, 3), keepdim=True)
    rotation = _chroma_rotation(parameters[:, 3])
    chroma = torch.einsum("bij,bjhw->bihw", rotation, images - grey)
    return gain * (mean + contrast * (grey - mean) + (contrast * saturation) * chroma)


def _blur_matrix(sigma: Tensor, size: int) -> Tensor:
    """Gaussian weights [B, size, size], rows sum to 1; the identity where sigma is 0."""
    position = torch.arange(size, device=sigma.device, dtype=torch.float32)
    squared = (position[:, None] - position[None, :]).square()
    weights = torch.exp(-squared / (2 * sigma.clamp_min(1e-3).square().view(-1, 1, 1)))
    return weights / weights.sum(-1, keepdim=True)


def destroy(images: Tensor, blur: Tensor, greyscale: Tensor, solarize: Tensor) -> Tensor:
    """The source's destructive operations, in this order: blur, greyscale, solarize.

    Args:
        images: float [B, 3, H, W].
        blur: sigma as a share of the height [B]; 0 leaves the frame as it is.
        greyscale: 1 takes the colour away [B].
        solarize: pixels above this threshold become 1 - x [B]; 0 leaves the frame.
    """
    height, width = images.shape[-2:]
    chosen = blur > 0
    if chosen.any():
        sigma = blur[chosen] * height
        rows = _blur_matrix(sigma, height).unsqueeze(1)
        columns = _blur_matrix(sigma, width).unsqueeze(1)
        images = images.clone()
        images[chosen] = rows @ images[chosen] @ columns.transpose(-1, -2)
    images = torch.where(greyscale.view(-1, 1, 1, 1) > 0, luma(images), images)
    threshold = torch.where(solarize > 0, solarize, math.inf).view(-1, 1, 1, 1)
    return torch.where(images > threshold, 1 - images, images)


def make_views(images: Tensor, parameters: ViewParameters) -> tuple[Tensor, Tensor]:
    """Source and target views, float [B, 3, H, W], of uint8 or float images."""
    p = parameters
    # The vector describes the views exactly, so they are made in full precision even where
    # the model around them runs in bfloat16.
    with torch.autocast(images.device.type, enabled=False):
        shared = crop_flip(to_float(images), p.crop, p.flip)
        source = destroy(jitter(shared, p.source), p.blur, p.greyscale, p.solarize)
        return source, jitter(shared, p.target)


def source_from_target(target: Tensor, action: Tensor) -> Tensor:
    """Apply the transform that action vectors [B, AUG_DIM] describe to the target views."""
    return destroy(
        jitter(target, -action[:, :JITTER]), action[:, 5] / 100, action[:, 6], action[:, 8]
    )

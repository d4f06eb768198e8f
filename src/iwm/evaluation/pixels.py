"""Pictures against pictures: PSNR over all pixels and over those that move, SSIM, LPIPS.

Pictures are uint8 [..., H, W, 3]; figures are one for each picture, so that pairs can be
compared and episodes resampled.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

Array = np.ndarray[Any, Any]

CEILING_DB = 60.0
"""PSNR of pictures that are alike, and of all that are nearer still: half a level off everywhere
is 54 dB, so nothing that has been through a codec comes near."""
MOVED_LEVELS = 16
"""A pixel moved when a channel of it changed by more of 255 levels than this."""
FEWEST_MOVED = 32
"""Moving pixels a picture must have for its PSNR over them to mean something."""

_CHUNK = 256


def decibels(squared_error: Array) -> Array:
    """PSNR in dB of mean squared errors in levels of 255; NaN stays NaN."""
    floor = 255.0**2 / 10 ** (CEILING_DB / 10)
    found: Array = 10 * np.log10(255.0**2 / np.maximum(squared_error, floor))
    return found


def squared_error(made: Tensor, true: Tensor) -> Array:
    """Mean squared error in levels of 255, uint8 [..., H, W, 3] each -> float64 [...]."""
    squared = (made.float() - true.float()).square().mean((-3, -2, -1))
    found: Array = squared.double().cpu().numpy()
    return found


def psnr(made: Tensor, true: Tensor, where: Tensor | None = None) -> Array:
    """PSNR in dB, peak 255, of each picture, at most :data:`CEILING_DB`.

    Args:
        made: uint8 [..., H, W, 3].
        true: the same shape, or one that broadcasts to it.
        where: bool [..., H, W]: only these pixels; all when None.

    Returns:
        float64 [...]; NaN where fewer than :data:`FEWEST_MOVED` pixels are asked for.
    """
    if where is None:
        return decibels(squared_error(made, true))
    squared = (made.float() - true.float()).square().mean(-1)
    count = where.sum((-2, -1)).double()
    total = (squared * where).double().sum((-2, -1))
    mean = torch.where(count >= FEWEST_MOVED, total / count.clamp(min=1), torch.nan)
    return decibels(mean.cpu().numpy())


def moved(true: Tensor, before: Tensor) -> Tensor:
    """The pixels that changed visibly: two pictures uint8 [..., H, W, 3] -> bool [..., H, W]."""
    return ((true.int() - before.int()).abs() > MOVED_LEVELS).any(-1)


def ssim(made: Tensor, true: Tensor) -> Array:
    """Structural similarity (Wang et al. 2004; Gaussian window) of each picture: float64 [N].

    Args:
        made: uint8 [N, H, W, 3].
        true: the same shape.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    parts = []
    for some, other in zip(torch.split(made, _CHUNK), torch.split(true, _CHUNK), strict=True):
        found = structural_similarity_index_measure(
            planes(some), planes(other), data_range=1.0, reduction="none"
        )
        assert isinstance(found, Tensor)
        parts.append(found.double().cpu().numpy().reshape(-1))
    return np.concatenate(parts)


def planes(pictures: Tensor) -> Tensor:
    """uint8 [N, H, W, 3] as float [N, 3, H, W] in [0, 1]."""
    return pictures.permute(0, 3, 1, 2).float() / 255


# Network of LPIPS -> its ImageNet weights as torchvision names the file.
_BACKBONES: dict[Literal["alex", "vgg", "squeeze"], str] = {
    "alex": "alexnet-owt-7be5be79.pth",
    "vgg": "vgg16-397923af.pth",
    "squeeze": "squeezenet1_1-b8a52dc0.pth",
}


def lpips_network() -> tuple[Literal["alex", "vgg", "squeeze"], Path] | None:
    """The network for LPIPS whose weights this machine has, and their file; nothing is fetched."""
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    for network, name in _BACKBONES.items():
        if (folder / name).is_file():
            return network, folder / name
    return None


@torch.no_grad()
def lpips(made: Tensor, true: Tensor, network: Literal["alex", "vgg", "squeeze"]) -> Array:
    """Learned perceptual distance (Zhang et al. 2018) of each picture, lower is nearer: [N].

    Args:
        made: uint8 [N, H, W, 3].
        true: the same shape.
        network: as :func:`lpips_network` found it.
    """
    from torchmetrics.functional.image.lpips import learned_perceptual_image_patch_similarity

    parts = [
        learned_perceptual_image_patch_similarity(
            planes(some),
            planes(other),
            net_type=network,
            reduction="none",
            normalize=True,
        ).reshape(-1)
        for some, other in zip(
            torch.split(made.cpu(), _CHUNK), torch.split(true.cpu(), _CHUNK), strict=True
        )
    ]
    found: Array = torch.cat(parts).double().numpy()
    return found

"""Functions from images to vectors that evaluations compare: models' latents and baselines."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy

import torch
from torch import Tensor
from torch.nn import functional as F

from iwm.data.augment import to_float
from iwm.models.iwm import IWM

Encode = Callable[[Tensor], Tensor]
"""Images [N, 3, H, W], uint8 or float in about [0, 1] -> float32 vectors [N, D] on the CPU."""

_PIXELS = 12


def encoder_of(model: IWM, batch_size: int = 256) -> Encode:
    """``z_cls`` of a model, in batches, on its own device."""
    device = next(model.parameters()).device

    @torch.no_grad()
    def encode(images: Tensor) -> Tensor:
        chunks = torch.split(images, batch_size)
        return torch.cat([model.encode(chunk.to(device))[0].cpu() for chunk in chunks])

    return encode


def random_encoder(model: IWM, seed: int = 0, batch_size: int = 256) -> Encode:
    """The same encoder with fresh weights: what the architecture sees by itself."""
    from iwm.models.encoder import Encoder

    fresh = deepcopy(model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh.encoder = Encoder(model.config)
    fresh.eval().to(next(model.parameters()).device)
    return encoder_of(fresh, batch_size)


def pixels(images: Tensor) -> Tensor:
    """The image itself, averaged to 12 x 12 pixels: [N, 3, H, W] -> [N, 432]."""
    return F.adaptive_avg_pool2d(to_float(images), _PIXELS).flatten(1)

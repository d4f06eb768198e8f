"""Frechet distance between sets of pictures, on a frozen encoder of ours.

Inception's weights cannot be had offline, and its features know photographs, not games. Ours
come from the image world model that the same run trained on the same games; the numbers compare
models of one run, not of different papers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from iwm.evaluation.latents import Encode

Array = np.ndarray[Any, Any]


class _Features(nn.Module):
    """An encoder in the form that torchmetrics asks for."""

    def __init__(self, encode: Encode, width: int) -> None:
        super().__init__()
        self.encode, self.num_features = encode, width

    def forward(self, images: Tensor) -> Tensor:
        """uint8 [N, 3, H, W] -> [N, width]."""
        return self.encode(images)


def frechet_distances(made: Mapping[str, Tensor], true: Tensor, encode: Encode) -> dict[str, float]:
    """Frechet distances (Heusel et al. 2017) between the features of sets of pictures.

    Args:
        made: name -> uint8 [N, H, W, 3].
        true: uint8 [M, H, W, 3], what each is held against.
        encode: uint8 [N, 3, H, W] -> float [N, D]; the sets should be larger than D.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance

    # Channels first, and once to the size that the features have.
    width = encode(true[:1].permute(0, 3, 1, 2)).shape[1]
    measure = FrechetInceptionDistance(_Features(encode, width), reset_real_features=False)
    _update(measure, true, real=True)
    found = {}
    for name, pictures in made.items():
        _update(measure, pictures, real=False)
        with torch.no_grad():
            found[name] = float(measure.compute())
        measure.reset()
    return found


def _update(measure: Any, pictures: Tensor, *, real: bool) -> None:
    for some in torch.split(pictures, 256):
        measure.update(some.permute(0, 3, 1, 2).contiguous(), real=real)

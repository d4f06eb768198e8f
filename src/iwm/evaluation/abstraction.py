"""The abstraction index: how little a latent changes when its image is transformed.

``1 - E|z(x) - z(t(x))| / E|z(x) - z(x')|``, clipped to [0, 1]: 0 for a latent that moves as far
under a transformation t as from one image to another (equivariant), 1 for one that does
not move (invariant). t is colour jitter of the evaluation's own strengths, x' another
episode's image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from iwm.data.augment import jitter, sample_jitter, to_float
from iwm.data.config import AugmentConfig
from iwm.errors import DataError
from iwm.evaluation.latents import Encode
from iwm.evaluation.statistics import Figure

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Moves:
    """Distances [N], one of each kind per image: ``transformed`` |z(x) - z(t(x))| and
    ``apart`` |z(x) - z(x')|."""

    transformed: Array
    apart: Array


def moves(
    encode: Encode, images: Tensor, episode: Array, config: AugmentConfig, seed: int = 0
) -> Moves:
    """Measure how far latents move; the same seed transforms and pairs alike for every model.

    Args:
        encode: images [B, 3, H, W] -> latents [B, D].
        images: uint8 [N, 3, H, W], of two episodes at least.
        episode: [N] labels.
        config: strengths of the jitter.
        seed: of transformations and pairs.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = sample_jitter(len(images), config, generator)
    clean = encode(images)
    moved = encode(jitter(to_float(images), drawn))
    other = _other_episode(episode, np.random.default_rng(seed))
    return Moves(
        (moved - clean).norm(dim=-1).numpy(),
        (clean - clean[torch.from_numpy(other)]).norm(dim=-1).numpy(),
    )


def _other_episode(episode: Array, generator: np.random.Generator) -> Array:
    """For each image the index of a random one of another episode [N].

    Raises:
        DataError: all images are of one episode.
    """
    if len(np.unique(episode)) < 2:
        raise DataError("the held-out frames are of one episode; images of two are to be compared")
    chosen = np.empty(len(episode), np.int64)
    for label in np.unique(episode):
        mine = episode == label
        chosen[mine] = generator.choice(np.flatnonzero(~mine), size=int(mine.sum()))
    return chosen


def abstraction_figures(
    found: dict[str, Moves], episode: Array, *, resamples: int = 1000, seed: int = 0
) -> dict[str, Figure]:
    """The index of each model, by name, with intervals from resampling whole episodes.

    All models share the resamples, so ``<first>_minus_<second>`` for the first two names is
    their paired difference.
    """
    _, label = np.unique(episode, return_inverse=True)
    groups = int(label.max()) + 1
    drawn = np.random.default_rng(seed).integers(groups, size=(resamples, groups))
    mean: dict[str, float] = {}
    resampled: dict[str, Array] = {}
    for name, one in found.items():
        parts = [
            np.bincount(label, weights=value.astype(np.float64), minlength=groups)
            for value in (one.transformed, one.apart)
        ]
        mean[name] = float(_index(parts[0].sum(), parts[1].sum()))
        resampled[name] = _index(parts[0][drawn].sum(1), parts[1][drawn].sum(1))
    names = list(found)
    if len(names) > 1:
        first, second = names[:2]
        name = f"{first}_minus_{second}"
        mean[name] = mean[first] - mean[second]
        resampled[name] = resampled[first] - resampled[second]
    figures: dict[str, Figure] = {}
    for name, values in resampled.items():
        low, high = np.quantile(values, [0.025, 0.975])
        figures[name] = {
            "mean": mean[name],
            "low": float(low),
            "high": float(high),
            "n": len(episode),
        }
    return figures


def _index(transformed: Any, apart: Any) -> Any:
    # Latents that are all alike say nothing about images: no abstraction, not the highest.
    ratio = np.divide(transformed, apart, out=np.ones_like(apart), where=apart > 0)
    return np.clip(1 - ratio, 0.0, 1.0)

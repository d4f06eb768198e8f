"""Linear probes on frozen latents: what can be read off them by one matrix.

Ridge regression in closed form, its strength chosen by the leave-one-out error, which the
singular value decomposition gives for all strengths at once (Golub, Heath and Wahba, 1979).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from iwm.data.augment import JITTER, jitter, sample_jitter, to_float
from iwm.data.config import AugmentConfig
from iwm.evaluation.latents import Encode

Array = np.ndarray[Any, Any]

STRENGTHS = tuple(10.0**power for power in range(-4, 4))
"""Candidate penalties, per sample, on standardised features."""


@dataclass(frozen=True)
class Linear:
    """A fitted map: ``((features - mean) / scale) @ weight + bias``."""

    mean: Tensor
    scale: Tensor
    weight: Tensor
    bias: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        """[n, F] -> [n, T], float64."""
        return ((features.double() - self.mean) / self.scale) @ self.weight + self.bias


def ridge(features: Tensor, targets: Tensor) -> Linear:
    """Least squares with the penalty of :data:`STRENGTHS` that leaves one out best.

    Args:
        features: [n, F]; constant ones do no harm.
        targets: [n, T].
    """
    x, y = features.double(), targets.double()
    mean, bias = x.mean(0), y.mean(0)
    scale = x.std(0)
    scale = torch.where(scale > 1e-9, scale, torch.ones_like(scale))
    u, s, vt = torch.linalg.svd((x - mean) / scale, full_matrices=False)
    residual, projected = y - bias, u.T @ (y - bias)
    best: tuple[float, Tensor] | None = None
    for strength in STRENGTHS:
        shrink = s.square() / (s.square() + strength * len(x))
        # The centre is fitted too: 1 / n of leverage for every sample.
        leverage = (u.square() @ shrink + 1 / len(x)).clamp_max(1 - 1e-6)
        left_out = (residual - u @ (shrink[:, None] * projected)) / (1 - leverage)[:, None]
        error = float(left_out.square().mean())
        if best is None or error < best[0]:
            damped = (s / (s.square() + strength * len(x)))[:, None] * projected
            best = error, vt.T @ damped
    assert best is not None
    return Linear(mean, scale, best[1], bias)


def classify(fit: Tensor, fit_label: Array, test: Tensor, test_label: Array) -> Array:
    """Whether a linear classifier (ridge on one-hot labels) names each test row [n] rightly.

    Args:
        fit: [m, F] features; ``fit_label`` [m].
        test: [n, F] features; ``test_label`` [n], labels that occur in ``fit_label``.
    """
    classes, index = np.unique(fit_label, return_inverse=True)
    one_hot = torch.nn.functional.one_hot(torch.from_numpy(index), len(classes))
    guess = ridge(fit, one_hot)(test).argmax(1).numpy()
    return np.asarray(classes[guess] == test_label)


@dataclass(frozen=True)
class Labelled:
    """Frames to probe: ``images`` uint8 [n, 3, H, W], ``label`` [n], ``episode`` [n]."""

    images: Tensor
    label: Array
    episode: Array

    def rows(self, chosen: Array) -> Labelled:
        """Some of the frames."""
        return Labelled(
            self.images[torch.from_numpy(chosen)], self.label[chosen], self.episode[chosen]
        )


def earlier_and_later(frames: Labelled, share: float = 2 / 3) -> tuple[Labelled, Labelled]:
    """Split every episode by time: its first ``share`` of frames, and the rest.

    Frames of an episode must stand in their order.
    """
    early = np.zeros(len(frames.label), bool)
    for episode in np.unique(frames.episode):
        mine = np.flatnonzero(frames.episode == episode)
        early[mine[: max(1, round(share * len(mine)))]] = True
    return frames.rows(np.flatnonzero(early)), frames.rows(np.flatnonzero(~early))


def identity_probe(
    encode: Encode, fit: Labelled, test: Labelled, config: AugmentConfig, seed: int = 0
) -> tuple[Array, Array]:
    """Fit a classifier of the frames' labels on clean frames; try it on clean and on jittered.

    Returns:
        Rightly named [n], for clean frames and for the same under other light and colours,
        which no frame that was fitted on shows.
    """
    drawn = sample_jitter(len(test.images), config, torch.Generator().manual_seed(seed))
    changed = jitter(to_float(test.images), drawn)
    known = encode(fit.images)
    clean, jittered = (
        classify(known, fit.label, encode(images), test.label) for images in (test.images, changed)
    )
    return clean, jittered


def jitter_probe(
    encode: Encode, fit: Tensor, test: Tensor, config: AugmentConfig, seed: int = 0
) -> Array:
    """Recover the jitter between two views from both views' vectors.

    Args:
        encode: images -> vectors.
        fit: uint8 [m, 3, H, W] to fit on; ``test`` [n, 3, H, W] of other episodes.
        config: strengths of the jitter; ones of 0 are left out.
        seed: of the jitters.

    Returns:
        [n]: 1 minus the squared error over the variance, averaged over the parameters. Their
        mean is R squared: 1 is perfect, 0 is what the parameters' mean alone gives.
    """
    generator = torch.Generator().manual_seed(seed)
    features, targets = [], []
    for images in (fit, test):
        drawn = sample_jitter(len(images), config, generator)
        changed = jitter(to_float(images), drawn)
        features.append(torch.cat([encode(images), encode(changed)], dim=1))
        targets.append(drawn)
    strength = torch.tensor(
        [config.brightness, config.contrast, config.saturation, config.hue], dtype=torch.float64
    )
    assert len(strength) == JITTER
    used = strength > 0
    error = (ridge(features[0], targets[0])(features[1]) - targets[1]).square()
    variance = strength.square() / 3  # of a uniform distribution on +- strength
    return np.asarray(1 - (error / variance)[:, used].mean(1))

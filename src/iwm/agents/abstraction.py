"""The abstraction index of what an agent sees, measured as it goes.

``1 - E|z(x) - z(t(x))| / E|z(x) - z(x')|``, clipped to [0, 1]: t is colour jitter, x' a frame
seen much earlier (evaluation takes another episode's).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]

STRENGTH = 0.6
"""Largest gain, contrast and saturation, as a power of two."""
_FORGET = 0.9
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def jitter(image: Pixels, rng: np.random.Generator) -> Pixels:
    """Change brightness, contrast and saturation of RGB pixels ``[H, W, 3]`` at random."""
    gain, contrast, saturation = np.exp2(rng.uniform(-STRENGTH, STRENGTH, 3)).astype(np.float32)
    pixels = np.asarray(image, np.float32)
    luma = (pixels @ _LUMA)[..., None]
    mean = luma.mean()
    changed = gain * (mean + contrast * (luma - mean) + saturation * (pixels - luma))
    clipped: Pixels = np.clip(changed, 0, 255).astype(np.uint8)
    return clipped


class AbstractionMeter:
    """Running means of the two distances; old frames fade."""

    def __init__(self) -> None:
        self._before: npt.NDArray[Any] | None = None
        self._moved = self._apart = 0.0

    def update(self, latent: npt.NDArray[Any], jittered: npt.NDArray[Any]) -> float | None:
        """The index with one more frame.

        Args:
            latent: ``[D]`` of a frame.
            jittered: ``[D]`` of the same frame, jittered.

        Returns:
            The index, or ``None`` while there is nothing to hold it against.
        """
        before, self._before = self._before, latent
        if before is None or before.shape != latent.shape:
            return None
        self._moved = _FORGET * self._moved + float(np.linalg.norm(latent - jittered))
        self._apart = _FORGET * self._apart + float(np.linalg.norm(latent - before))
        if self._apart == 0:
            return None
        return float(np.clip(1 - self._moved / self._apart, 0.0, 1.0))

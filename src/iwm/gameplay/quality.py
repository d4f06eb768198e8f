"""Per-frame statistics, computed once at ingestion: brightness, sharpness, two hashes.

Everything that is compared over time or between machines is summed in integers,
so the index is byte-stable; only the perceptual hash's cosine transform is in
floating point, and it keeps nothing but signs.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Callable

MIN_SIDE = 8
"""Frames with a side below this many pixels carry too little to hash or learn from."""

_HASH_SIDE = 8
_THUMBNAIL_SIDE = 4 * _HASH_SIDE

UInt8 = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class FrameStatistics:
    """What one frame looks like; the perceptual hash follows from ``thumbnail``."""

    luma_mean: float
    """Mean of ITU-R BT.601 luma, 0..255."""
    luma_std: float
    """Its population standard deviation."""
    sharpness: float
    """Population variance of the 4-neighbour Laplacian of luma, borders left out."""
    sha1: bytes
    """Digest of the decoded RGB pixels, 20 bytes: equal means the same picture."""
    thumbnail: UInt8
    """Luma at 32x32 (Lanczos), the perceptual hash's input."""


def frame_statistics(image: UInt8) -> FrameStatistics:
    """Measure one frame.

    Args:
        image: uint8 ``[H, W, 3]``, RGB, both sides at least 3 pixels.
    """
    pixels = np.ascontiguousarray(image)
    grey = Image.fromarray(pixels).convert("L")
    mean, std = _moments(grey.histogram())
    return FrameStatistics(
        luma_mean=mean,
        luma_std=std,
        sharpness=_laplacian_variance(np.asarray(grey)),
        sha1=hashlib.sha1(pixels.data, usedforsecurity=False).digest(),
        thumbnail=np.asarray(
            grey.resize((_THUMBNAIL_SIDE, _THUMBNAIL_SIDE), Image.Resampling.LANCZOS)
        ),
    )


def _moments(histogram: list[int]) -> tuple[float, float]:
    """Mean and standard deviation of the levels a 256-bin histogram counts, exactly."""
    counts = np.asarray(histogram, dtype=np.int64)
    levels = np.arange(256, dtype=np.int64)
    n = int(counts.sum())
    total = int(counts @ levels)
    squares = int(counts @ (levels * levels))
    return total / n, float(np.sqrt((n * squares - total * total) / (n * n)))


def _laplacian_variance(grey: UInt8) -> float:
    """Variance of the 4-neighbour Laplacian (Pech-Pacheco et al. 2000, focus measure)."""
    wide = grey.astype(np.int16)
    laplacian = wide[1:-1, 1:-1] * np.int16(-4)
    laplacian += wide[:-2, 1:-1]
    laplacian += wide[2:, 1:-1]
    laplacian += wide[1:-1, :-2]
    laplacian += wide[1:-1, 2:]
    n = laplacian.size
    # Whole numbers far below 2**53: the sums are exact. Not a BLAS dot product, whose threads
    # would fight over the cores with the other workers'.
    flat = laplacian.reshape(-1).astype(np.float64)
    total, squares = int(flat.sum()), int(np.einsum("i,i->", flat, flat))
    return (n * squares - total * total) / (n * n)


def perceptual_hashes(thumbnails: UInt8) -> npt.NDArray[np.uint64]:
    """64-bit pHash of many frames: signs of the low cosine frequencies about their median.

    Bit for bit ``imagehash.phash`` of the same pictures, most significant bit first.

    Args:
        thumbnails: uint8 ``[N, 32, 32]``, from :func:`frame_statistics`.

    Returns:
        uint64 ``[N]``.
    """
    if len(thumbnails) == 0:
        return np.empty(0, dtype=np.uint64)
    dct = _dct()
    # Down the columns first, then only the eight lowest rows: the same numbers, a quarter of the
    # second transform's work.
    rows = dct(thumbnails.astype(np.float64), type=2, axis=1)[:, :_HASH_SIDE]
    low = dct(rows, type=2, axis=2)[:, :, :_HASH_SIDE].reshape(len(thumbnails), -1)
    bits = low > np.median(low, axis=1, keepdims=True)
    return np.packbits(bits, axis=1).view(">u8")[:, 0].astype(np.uint64)


@lru_cache(maxsize=1)
def _dct() -> Callable[..., npt.NDArray[np.float64]]:
    """SciPy's transform, imported when first needed (it takes a tenth of a second)."""
    from scipy.fft import dct

    transform: Callable[..., npt.NDArray[np.float64]] = dct
    return transform


def hamming(left: npt.NDArray[np.uint64], right: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint8]:
    """Number of differing bits, element by element, with broadcasting."""
    return np.bitwise_count(np.bitwise_xor(left, right))

"""JPEG at the bits that a tokenizer spends: the baseline a learned code must beat.

What is counted is what changes from picture to picture: the entropy-coded scan and one byte for
the quality. The header with its Huffman tables and quantisation tables (some 600 bytes, more than
a small picture's tokens) is left out, as the codebook and the weights are on the other side:
both ends know them. The best quality that fits is taken, with chroma halved or in full, whichever
comes out nearer, so that the baseline is JPEG at its best.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Image8 = npt.NDArray[np.uint8]
Array = np.ndarray[Any, Any]

QUALITIES = range(1, 101)
_SUBSAMPLINGS = ("420", "444")
_QUALITY_BYTES = 1
_START_OF_SCAN = b"\xff\xda"
_END = b"\xff\xd9"


def scan_bytes(encoded: bytes) -> int:
    """Bytes of a baseline JPEG's entropy-coded scan, headers and end marker left out.

    Raises:
        ValueError: not a JPEG with a scan.
    """
    at = 2  # after the marker that starts the image
    while encoded[at : at + 2] != _START_OF_SCAN:
        if at + 4 > len(encoded) or encoded[at] != 0xFF:
            raise ValueError("no scan: not a whole JPEG")
        at += 2 + int.from_bytes(encoded[at + 2 : at + 4], "big")
    begin = at + 2 + int.from_bytes(encoded[at + 2 : at + 4], "big")
    return len(encoded.removesuffix(_END)) - begin


def at_budget(image: Image8, bits: float) -> tuple[Image8, int]:
    """A picture through JPEG, in no more than ``bits``.

    Args:
        image: uint8 [H, W, 3].
        bits: what may be spent.

    Returns:
        The decoded picture and the bytes counted. Where not even the lowest quality fits, the
        picture's mean colour, which costs 3 bytes; where that does not fit either, black for 0.
    """
    from simplejpeg import decode_jpeg

    image = np.ascontiguousarray(image)
    budget = int(bits // 8)
    best: tuple[float, Image8, int] | None = None
    for subsampling in _SUBSAMPLINGS:
        fitting = _best_quality(image, subsampling, budget)
        if fitting is None:
            continue
        decoded: Image8 = decode_jpeg(fitting)
        error = float(np.square(decoded.astype(np.float32) - image).mean())
        if best is None or error < best[0]:
            best = error, decoded, scan_bytes(fitting) + _QUALITY_BYTES
    if best is not None:
        return best[1], best[2]
    if budget < 3:
        return np.zeros_like(image), 0
    mean = image.reshape(-1, 3).mean(0).round().astype(np.uint8)
    return np.broadcast_to(mean, image.shape).copy(), 3


def _best_quality(image: Image8, subsampling: str, budget: int) -> bytes | None:
    """The encoding of the highest quality that fits: sizes grow with quality, but not strictly."""
    from simplejpeg import encode_jpeg

    def encode(quality: int) -> bytes:
        encoded: bytes = encode_jpeg(image, quality=quality, colorsubsampling=subsampling)
        return encoded

    def fits(encoded: bytes) -> bool:
        return scan_bytes(encoded) + _QUALITY_BYTES <= budget

    low, high = 0, len(QUALITIES)  # QUALITIES[low - 1] fits, QUALITIES[high] does not
    found = None
    while low < high:
        middle = (low + high) // 2
        encoded = encode(QUALITIES[middle])
        if fits(encoded):
            found, low = encoded, middle + 1
        else:
            high = middle
    return found


def baseline(images: Image8, bits: float) -> tuple[Image8, Array]:
    """:func:`at_budget` of every picture: decoded uint8 [N, H, W, 3], bytes int64 [N]."""
    pairs = [at_budget(image, bits) for image in images]
    return np.stack([decoded for decoded, _ in pairs]), np.array([spent for _, spent in pairs])

"""JPEG at the bits that a tokenizer spends: the baseline a learned code is held against.

A small JPEG is mostly header, so two countings are given, and neither alone is the truth:

* *files*: every byte that a decoder needs from file to picture, quantisation and (optimised)
  Huffman tables included, the optional JFIF segment not. Where no file is so
  small (under some 300 bytes), the smallest there is stands in, at more than the budget.
* *streams*: the entropy-coded scan and one byte for the quality. The header is free, as if both
  ends knew JPEG's standard tables and the pictures' size, as they do know the codebook and the
  weights of a learned code.

The best quality that fits is taken, with chroma halved or in full, whichever comes out nearer.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

Image8 = npt.NDArray[np.uint8]
Array = np.ndarray[Any, Any]

QUALITIES = range(1, 101)
_QUALITY_BYTES = 1
_START_OF_SCAN = b"\xff\xda"
_END = b"\xff\xd9"
_JFIF_BYTES = 18


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


def stream(image: Image8, bits: float) -> tuple[Image8, int]:
    """A picture through a JPEG stream of no more than ``bits``, headers free.

    Args:
        image: uint8 [H, W, 3].
        bits: what may be spent.

    Returns:
        The decoded picture and the bytes counted. Where not even the lowest quality fits, the
        picture's mean colour, which costs 3 bytes; where that does not fit either, black for 0.
    """
    from simplejpeg import decode_jpeg

    image, budget = np.ascontiguousarray(image), int(bits // 8)
    best: tuple[float, Image8, int] | None = None
    for subsampling in ("420", "444"):
        found = _best(partial(_encode, image, subsampling), _stream_bytes, budget)
        if found is not None:
            best = _nearer(best, image, decode_jpeg(found), _stream_bytes(found))
    if best is not None:
        return best[1:]
    if budget < 3:
        return np.zeros_like(image), 0
    mean = image.reshape(-1, 3).mean(0).round().astype(np.uint8)
    return np.broadcast_to(mean, image.shape).copy(), 3


def at_budget(image: Image8, bits: float) -> tuple[Image8, int]:
    """A picture through a JPEG file of no more than ``bits``, or through the smallest there is.

    Args:
        image: uint8 [H, W, 3].
        bits: what may be spent.

    Returns:
        The decoded picture and the bytes of the file: more than ``bits`` where no file fits.
    """
    from simplejpeg import decode_jpeg

    image, budget = np.ascontiguousarray(image), int(bits // 8)
    best: tuple[float, Image8, int] | None = None
    smallest: list[bytes] = []
    for subsampling in ("4:2:0", "4:4:4"):
        encode = partial(_save, image, subsampling)
        found = _best(encode, _file_bytes, budget)
        if found is not None:
            best = _nearer(best, image, decode_jpeg(found), _file_bytes(found))
        smallest += [encode(quality) for quality in QUALITIES[:3]]
    if best is not None:
        return best[1:]
    least = min(smallest, key=_file_bytes)
    return decode_jpeg(least), _file_bytes(least)


def _stream_bytes(encoded: bytes) -> int:
    return scan_bytes(encoded) + _QUALITY_BYTES


def _file_bytes(encoded: bytes) -> int:
    return len(encoded) - _JFIF_BYTES


def _encode(image: Image8, subsampling: str, quality: int) -> bytes:
    """With the standard's own Huffman tables."""
    from simplejpeg import encode_jpeg

    encoded: bytes = encode_jpeg(image, quality=quality, colorsubsampling=subsampling)
    return encoded


def _save(image: Image8, subsampling: str, quality: int) -> bytes:
    """With Huffman tables made for the picture, which are smaller."""
    from PIL import Image

    with io.BytesIO() as target:
        picture = Image.fromarray(image)
        picture.save(target, "JPEG", quality=quality, subsampling=subsampling, optimize=True)
        return target.getvalue()


def _nearer(
    best: tuple[float, Image8, int] | None, image: Image8, decoded: Image8, spent: int
) -> tuple[float, Image8, int]:
    error = float(np.square(decoded.astype(np.float32) - image).mean())
    return (error, decoded, spent) if best is None or error < best[0] else best


def _best(
    encode: Callable[[int], bytes], size: Callable[[bytes], int], budget: int
) -> bytes | None:
    """The encoding of the highest quality that fits, by bisection; None where none does."""
    low, high, found = 0, len(QUALITIES), None
    while low < high:
        middle = (low + high) // 2
        encoded = encode(QUALITIES[middle])
        if size(encoded) <= budget:
            found, low = encoded, middle + 1
        else:
            high = middle
    return found


def baseline(
    images: Image8, bits: float, through: Callable[[Image8, float], tuple[Image8, int]]
) -> tuple[Image8, Array]:
    """Every picture ``through`` :func:`at_budget` or :func:`stream`: uint8 [N, H, W, 3], and the
    bytes int64 [N].
    """
    pairs = [through(image, bits) for image in images]
    return np.stack([decoded for decoded, _ in pairs]), np.array([spent for _, spent in pairs])

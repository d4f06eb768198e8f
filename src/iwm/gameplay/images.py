"""Still images from outside: bytes in, 8-bit RGB out, or one line that says why not.

Everything here treats its input as hostile: the format is recognised by its first
bytes against a short list, the size is read from the header and bounded **before**
a pixel is decoded, and whatever a decoder raises becomes a
:class:`~iwm.errors.DataError`.

What becomes of unusual images:

=====================================  =============================================
grey, palette, 1-bit                   the same grey or palette colours in RGB
CMYK and YCCK JPEG                     converted to RGB (Adobe's inverted inks known)
16 bits a channel                      the high byte
alpha, transparent palette or colour   composited over black
EXIF orientation                       applied
animated GIF, APNG, WebP               refused: one frame of many is not the image
=====================================  =============================================
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from iwm.errors import DataError

if TYPE_CHECKING:
    from PIL.ImageFile import ImageFile

Pixels = NDArray[np.uint8]

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif"})
"""File name endings (lower case) under which an image folder looks for images."""

_MAX_SIDE = 65_535
# A progressive JPEG may hold thousands of near-empty passes over all its pixels; real
# encoders write about ten. (libjpeg-turbo's own advice is a limit on scans.)
_MAX_JPEG_SCANS = 100
_EXIF_ORIENTATION = 0x0112

# EXIF 2.32, 4.6.5: what must be done to the stored pixels to stand upright.
_UPRIGHT: dict[int, Callable[[Pixels], Pixels]] = {
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: pixels[::-1].swapaxes(0, 1),
    7: lambda pixels: pixels[::-1, ::-1].swapaxes(0, 1),
    8: lambda pixels: pixels[:, ::-1].swapaxes(0, 1),
}


def image_format(data: bytes) -> str | None:
    """``"JPEG"``, ``"PNG"``, ``"GIF"``, ``"BMP"``, ``"WEBP"``, or ``None`` for anything else."""
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if data.startswith(b"BM"):
        return "BMP"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    return None


def decode_image(data: bytes, max_pixels: int, where: str = "image") -> Pixels:
    """Decode one still image.

    Args:
        data: the encoded file.
        max_pixels: more pixels than this, by the header, are refused undecoded.
        where: file name or field, to begin the error message with.

    Returns:
        uint8 ``[height, width, 3]``, RGB, C-contiguous; upright by EXIF.

    Raises:
        DataError: empty, of another format, too large, animated, cut off or broken.
    """
    if not data:
        raise DataError(f"{where}: the file is empty (zero bytes)")
    kind = image_format(data)
    if kind is None:
        raise DataError(f"{where}: not an image (expected JPEG, PNG, WebP, BMP or GIF)")
    try:
        pixels = _decode_jpeg(data, max_pixels, where) if kind == "JPEG" else None
        if pixels is None:
            pixels = _decode_pil(kind, data, max_pixels, where)
    except DataError:
        raise
    except Exception as error:
        # Hostile bytes make decoders raise whatever they like (SyntaxError, KeyError,
        # struct.error, MemoryError ...): for the caller they all mean the same.
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{where}: broken or cut-off {kind}: {reason[:200]}") from None
    return np.ascontiguousarray(pixels)


def read_image(path: Path, max_pixels: int) -> Pixels:
    """Decode the image file at ``path``; see :func:`decode_image`.

    Raises:
        DataError: the file cannot be read, is implausibly large, or is no image.
    """
    where = printable(path)
    # An uncompressed 16-bit RGBA image is 8 bytes a pixel; the rest is room for metadata.
    limit = 8 * max_pixels + 16 * 2**20
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise DataError(f"{where}: {error.strerror or error}") from None
    if len(data) > limit:
        raise DataError(f"{where}: larger than {limit:,} bytes")
    return decode_image(data, max_pixels, where)


def printable(path: Path | str) -> str:
    """A file name that can be printed and stored as UTF-8, whatever its bytes are."""
    return str(path).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _check_size(width: int, height: int, max_pixels: int, where: str) -> None:
    if width < 1 or height < 1:
        raise DataError(f"{where}: the header says {width}x{height} pixels")
    if width * height > max_pixels or max(width, height) > _MAX_SIDE:
        raise DataError(
            f"{where}: {width}x{height} is {width * height:,} pixels, more than {max_pixels:,}"
        )


def _decode_jpeg(data: bytes, max_pixels: int, where: str) -> Pixels | None:
    """The fast path; ``None`` for the colour spaces that only PIL converts."""
    import simplejpeg

    height, width, colour_space, _ = simplejpeg.decode_jpeg_header(data)
    _check_size(width, height, max_pixels, where)
    # 0xFFDA inside entropy-coded data would be stuffed, so counting is enough.
    if data.count(b"\xff\xda") > _MAX_JPEG_SCANS:
        raise DataError(f"{where}: JPEG with more than {_MAX_JPEG_SCANS} scans")
    if colour_space not in ("YCbCr", "Gray", "RGB"):
        return None
    pixels: Pixels = simplejpeg.decode_jpeg(data, "RGB")
    if b"Exif\x00\x00" in data[: 2**18]:
        pixels = _upright(pixels, _open("JPEG", data))
    return pixels


def _open(kind: str, data: bytes) -> ImageFile:
    """Read the header. The classes are called directly: ``Image.open`` has a bound of its own."""
    from PIL import (
        BmpImagePlugin,
        GifImagePlugin,
        JpegImagePlugin,
        PngImagePlugin,
        WebPImagePlugin,
    )

    openers: dict[str, Callable[[io.BytesIO], ImageFile]] = {
        "BMP": BmpImagePlugin.BmpImageFile,
        "GIF": GifImagePlugin.GifImageFile,
        "JPEG": JpegImagePlugin.JpegImageFile,
        "PNG": PngImagePlugin.PngImageFile,
        "WEBP": WebPImagePlugin.WebPImageFile,
    }
    return openers[kind](io.BytesIO(data))


def _decode_pil(kind: str, data: bytes, max_pixels: int, where: str) -> Pixels:
    image = _open(kind, data)
    _check_size(image.width, image.height, max_pixels, where)
    if getattr(image, "is_animated", False):
        raise DataError(f"{where}: animated {kind}; import it as a video instead")
    image.load()
    if image.mode.startswith("I;16"):
        grey = (np.asarray(image) >> 8).astype(np.uint8)
        pixels = np.repeat(grey[..., None], 3, axis=2)
    elif image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = np.asarray(image.convert("RGBA")).astype(np.uint16)
        pixels = ((rgba[..., :3] * rgba[..., 3:] + 127) // 255).astype(np.uint8)
    elif image.mode in ("1", "L", "P", "RGB", "CMYK"):
        pixels = np.asarray(image.convert("RGB"))
    else:
        raise DataError(f"{where}: {kind} with colour mode {image.mode}, which is not supported")
    return _upright(pixels, image)


def _upright(pixels: Pixels, image: ImageFile) -> Pixels:
    try:
        orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:
        # Broken metadata does not make the pixels wrong.
        return pixels
    turn = _UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return turn(pixels) if turn else pixels

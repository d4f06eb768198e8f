"""Frames as they stand in the shards: resized, encoded, decoded again.

Everything here is a pure function of its bytes, so the shards do not depend on how many
processes made them: Pillow's resampling is integer arithmetic and libjpeg-turbo's accurate
DCT gives the same coefficients on every machine.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from iwm.data.config import ShardConfig
from iwm.errors import DataError

if TYPE_CHECKING:
    from iwm.gameplay.schema import Recording

Image8 = npt.NDArray[np.uint8]

EXTENSIONS = {"jpeg": "jpg", "png": "png"}
"""Format of the configuration -> file extension in the tar."""


def resize_frame(image: Image8, cfg: ShardConfig) -> Image8:
    """Bring a frame to the size of the shards, antialiased (bicubic, support scaled with it).

    Args:
        image: uint8 [H, W, 3], RGB.
        cfg: ``width``, ``height`` and ``fit``: ``resize`` squeezes the whole frame, ``crop``
            cuts the largest centred rectangle of the target's aspect first.

    Returns:
        uint8 [cfg.height, cfg.width, 3].
    """
    height, width = image.shape[:2]
    if (height, width) == (cfg.height, cfg.width):
        return np.ascontiguousarray(image)
    from PIL import Image

    box = (0.0, 0.0, float(width), float(height))
    if cfg.fit == "crop":
        scale = min(width / cfg.width, height / cfg.height)
        left = (width - scale * cfg.width) / 2
        top = (height - scale * cfg.height) / 2
        box = (left, top, width - left, height - top)
    resized = Image.fromarray(np.ascontiguousarray(image)).resize(
        (cfg.width, cfg.height), Image.Resampling.BICUBIC, box=box
    )
    return np.asarray(resized)


def encode_frame(image: Image8, cfg: ShardConfig) -> bytes:
    """Encode uint8 [H, W, 3] RGB as JPEG (4:2:0 chroma) or PNG."""
    if cfg.format == "jpeg":
        import simplejpeg

        encoded: bytes = simplejpeg.encode_jpeg(
            np.ascontiguousarray(image), quality=cfg.quality, colorsubsampling="420"
        )
        return encoded
    from PIL import Image

    with io.BytesIO() as stream:
        Image.fromarray(image).save(stream, format="PNG", compress_level=6)
        return stream.getvalue()


Shape = tuple[int, int, int]


def decoder(image_format: str, shape: Shape) -> Callable[[bytes, Image8], None]:
    """The function that decodes one image of a shard into its place in a batch.

    Args:
        image_format: ``jpeg`` or ``png``; nothing else is tried, whatever the bytes say.
        shape: (height, width, 3) of every image.

    Returns:
        ``decode(encoded, out)`` overwrites ``out``, uint8 of that shape, C-contiguous. It raises
        ValueError if the bytes are no such image, are damaged, or have another size.
    """
    return _jpeg_decoder(shape) if image_format == "jpeg" else _png_decoder(shape)


def _jpeg_decoder(shape: Shape) -> Callable[[bytes, Image8], None]:
    from simplejpeg import decode_jpeg

    def decode(encoded: bytes, out: Image8) -> None:
        decoded = decode_jpeg(encoded, buffer=out)
        if decoded.shape != shape:
            raise ValueError(f"is {decoded.shape[1]}x{decoded.shape[0]}, not as the index says")

    return decode


def _png_decoder(shape: Shape) -> Callable[[bytes, Image8], None]:
    from PIL import Image

    def decode(encoded: bytes, out: Image8) -> None:
        try:
            with Image.open(io.BytesIO(encoded), formats=("PNG",)) as image:
                if (image.height, image.width) != shape[:2]:
                    raise ValueError(f"is {image.width}x{image.height}, not as the index says")
                out[:] = np.asarray(image.convert("RGB"))
        except (OSError, SyntaxError) as error:
            raise ValueError(f"not a PNG: {error}") from None

    return decode


def encode_frames(
    folder: Path,
    recording: Recording,
    frames: npt.NDArray[np.int64],
    max_pixels: int,
    cfg: ShardConfig,
) -> list[bytes]:
    """Decode, resize and encode some frames of one recording; the work of one process.

    Args:
        folder: the recording's folder.
        recording: its metadata.
        frames: positions in the frames file, ascending.
        max_pixels: the largest frame's, according to the index.
        cfg: size and encoding.

    Returns:
        One encoded image for each entry of ``frames``, in that order.

    Raises:
        DataError: a frame that ingestion could decode cannot be decoded now.
    """
    from iwm.gameplay.reader import iter_frames

    encoded = []
    for decoded in iter_frames(folder, recording, frames, max_pixels=max_pixels):
        if decoded.image is None:
            raise DataError(
                f"{folder / recording.frames_path}: frame {decoded.frame}: {decoded.error}; "
                "it was whole when the index was made: run `iwm ingest` again"
            )
        encoded.append(encode_frame(resize_frame(decoded.image, cfg), cfg))
    return encoded

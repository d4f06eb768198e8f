"""Moving pictures of dreams: GIF by Pillow, MP4 by FFmpeg, written whole or not at all."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from iwm.errors import ConfigError
from iwm.files import atomic_path

Image8 = npt.NDArray[np.uint8]

SUFFIXES = (".gif", ".mp4")
_BAND = 16
"""Height of the band that names what is below it, in pixels."""
_GAP = 4


def check_suffix(path: Path) -> None:
    """Refuse a name that says no known format.

    Raises:
        ConfigError: it does not end in .gif or .mp4.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"{path}: write to a name that ends in {' or '.join(SUFFIXES)}")


def side_by_side(films: dict[str, Image8], captions: Sequence[str], scale: int) -> Image8:
    """Films next to one another, named, with a caption for each frame.

    Args:
        films: name -> uint8 [K, H, W, 3].
        captions: K lines, shown at the bottom.
        scale: pixels a side of each pixel.

    Returns:
        uint8 [K, h, w, 3]; height and width are even, as video wants them.
    """
    from PIL import Image, ImageDraw

    large = [film.repeat(scale, 1).repeat(scale, 2) for film in films.values()]
    height, width = large[0].shape[1:3]
    whole = 2 * _BAND + height, len(large) * (width + _GAP) - _GAP
    pictures = []
    for number, caption in enumerate(captions):
        canvas = Image.new("RGB", (whole[1] + whole[1] % 2, whole[0] + whole[0] % 2))
        drawn = ImageDraw.Draw(canvas)
        for place, (name, film) in enumerate(zip(films, large, strict=True)):
            left = place * (width + _GAP)
            drawn.text((left + 2, 2), name, fill="white")
            canvas.paste(Image.fromarray(film[number]), (left, _BAND))
        drawn.text((2, _BAND + height + 2), caption, fill="white")
        pictures.append(np.asarray(canvas))
    return np.stack(pictures)


def write_film(frames: Image8, path: Path, fps: float) -> None:
    """Write a film; its format is its name's.

    Args:
        frames: uint8 [K, h, w, 3]; even sizes for MP4.
        path: ``.gif`` or ``.mp4``.
        fps: frames a second.

    Raises:
        ConfigError: another format.
    """
    check_suffix(path)
    with atomic_path(path) as temporary:
        if path.suffix.lower() == ".gif":
            _write_gif(frames, temporary, fps)
        else:
            _write_mp4(frames, temporary, fps)


def _write_gif(frames: Image8, path: Path, fps: float) -> None:
    from PIL import Image

    first, *others = (Image.fromarray(frame) for frame in frames)
    # GIF counts hundredths of a second, and browsers slow down what is faster than two of them.
    duration = max(20, 10 * round(100 / fps))
    first.save(path, format="GIF", save_all=True, append_images=others, duration=duration, loop=0)


def _write_mp4(frames: Image8, path: Path, fps: float) -> None:
    import av

    with av.open(str(path), "w", format="mp4") as container:
        stream: Any = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "18"}
        for frame in frames:
            for packet in stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)

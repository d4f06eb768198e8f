"""Videos made by ffmpeg, a tool outside the project, with each frame's number burned in."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

BITS, BLOCK, HEIGHT = 12, 16, 64
WIDTH = BITS * BLOCK


def burn(number: int) -> NDArray[np.uint8]:
    """A frame whose upper half shows ``number`` in binary, as big black and white blocks."""
    frame = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
    for bit in range(BITS):
        frame[: HEIGHT // 2, bit * BLOCK : (bit + 1) * BLOCK] = 255 * (number >> bit & 1)
    left = number * 5 % (WIDTH - BLOCK)
    frame[HEIGHT // 2 + 8 : HEIGHT - 8, left : left + BLOCK] = (200, 60, 30)
    return frame


def burned(frame: NDArray[np.uint8]) -> int:
    """The number read back from a decoded frame."""
    middle = frame[8 : HEIGHT // 2 - 8, :, :].mean(axis=(0, 2)).reshape(BITS, BLOCK)
    return sum(1 << bit for bit in range(BITS) if middle[bit, 4:-4].mean() > 127)


def make_clip(
    path: Path, frames: int = 90, fps: str = "30", *, filters: str = "null", options: str = ""
) -> Path:
    """H.264 with B-frames and an AAC (WebM: VP9 and Opus) audio track."""
    import imageio_ffmpeg

    webm = path.suffix == ".webm"
    video = "libvpx-vp9 -b:v 2M -deadline realtime" if webm else "libx264 -bf 2 -g 24 -crf 14"
    audio = "libopus" if webm else "aac"
    command = [
        imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y",
        "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{WIDTH}x{HEIGHT}", "-r", fps, "-i", "-",
        "-f", "lavfi", "-i", "sine=frequency=440:sample_rate=48000",
        "-vf", filters, "-fps_mode", "passthrough", "-shortest", "-pix_fmt", "yuv420p",
        "-c:v", *video.split(), "-c:a", audio, *options.split(), str(path),
    ]  # fmt: skip
    raw = b"".join(burn(number).tobytes() for number in range(frames))
    subprocess.run(command, input=raw, check=True, timeout=120)
    return path

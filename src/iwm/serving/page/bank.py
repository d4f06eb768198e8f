"""A few frames packed with a model, and their latents: what the status page compares with.

One file, ``bank.json``, beside the weights::

    {"weights_sha256": "...", "frames": [{"caption": "...", "jpeg": "base64", "z_cls": "base64"}]}

``z_cls`` is little-endian float32 of the model's width.
"""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from iwm.errors import DataError, IwmError, ModelError
from iwm.files import read_json, write_json

if TYPE_CHECKING:
    from iwm.serving.engine import Engine

BANK_FILE = "bank.json"
WEIGHTS_FILE = "model.safetensors"
MOST_FRAMES = 64
THUMBNAIL = 128
"""Longest side of a kept frame, pixels."""
MAX_BYTES = 8 * 1024 * 1024


def _digest(folder: Path) -> str:
    with (folder / WEIGHTS_FILE).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _thumbnail(image: npt.NDArray[np.uint8]) -> bytes:
    from PIL import Image

    picture = Image.fromarray(image)
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


def write_bank(
    folder: Path,
    engine: Engine,
    images: Sequence[npt.NDArray[np.uint8]],
    captions: Sequence[str],
) -> None:
    """Write the bank of the model in ``folder``.

    Args:
        folder: with the weights that ``engine`` runs.
        engine: what encodes them.
        images: at most :data:`MOST_FRAMES` frames ``[H, W, 3]``, none that training saw.
        captions: what each shows, or where it comes from.

    Raises:
        DataError: too many frames.
    """
    if len(images) > MOST_FRAMES:
        raise DataError(f"bank: expected at most {MOST_FRAMES} frames, given {len(images)}")
    pictures = [_thumbnail(image) for image in images]
    _write(folder, engine, images, list(zip(captions, pictures, strict=True)))


def carry_bank(before: Engine, engine: Engine) -> None:
    """Give a model that takes over the frames of the one before it, as the new one sees them.

    A bank that is there is kept; where the one before has none that can be read, none is made.
    The kept frames are thumbnails: latents are those of slightly coarser pictures.
    """
    from iwm.gameplay.images import decode_image

    folder = engine.folder
    if folder is None or (folder / BANK_FILE).exists():
        return
    try:
        held = _frames(before.folder, before.latent_dim)
        pictures = [base64.b64decode(frame["jpeg"]) for frame in held]
        images = [decode_image(picture, THUMBNAIL**2) for picture in pictures]
    except (IwmError, OSError, ValueError):
        return
    captions = [frame["caption"] for frame in held]
    _write(folder, engine, images, list(zip(captions, pictures, strict=True)))


def _write(
    folder: Path,
    engine: Engine,
    images: Sequence[npt.NDArray[np.uint8]],
    kept: Sequence[tuple[str, bytes]],
) -> None:
    frames = []
    for image, (caption, picture) in zip(images, kept, strict=True):
        latent = engine.encode(np.stack([engine.preprocess(image)])).z_cls[0]
        frames.append(
            {
                "caption": caption,
                "jpeg": base64.b64encode(picture).decode(),
                "z_cls": base64.b64encode(latent.astype("<f4").tobytes()).decode(),
            }
        )
    write_json(folder / BANK_FILE, {"weights_sha256": _digest(folder), "frames": frames})


def read_bank(folder: Path | None, width: int) -> dict[str, Any]:
    """What ``GET /bank`` answers: ``frames``, and ``why`` there are none (else ``None``).

    Args:
        folder: the model's.
        width: of its latents.
    """
    try:
        return {"frames": _frames(folder, width), "why": None}
    except (IwmError, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        return {"frames": [], "why": reason}


def _frames(folder: Path | None, width: int) -> list[dict[str, str]]:
    if folder is None or not (folder / BANK_FILE).is_file():
        raise ModelError("this model was packed without a bank of frames")
    if (folder / BANK_FILE).stat().st_size > MAX_BYTES:
        raise ModelError(f"{BANK_FILE} is larger than {MAX_BYTES} bytes")
    try:
        held = read_json(folder / BANK_FILE)
        if held["weights_sha256"] != _digest(folder):
            raise ModelError(f"{BANK_FILE} holds latents of other weights")
        frames = [
            {name: str(frame[name]) for name in ("caption", "jpeg", "z_cls")}
            for frame in held["frames"][:MOST_FRAMES]
        ]
        sizes = {len(base64.b64decode(frame["z_cls"], validate=True)) for frame in frames}
    except (KeyError, TypeError, ValueError):
        raise ModelError(f"{BANK_FILE} is damaged") from None
    if sizes != {4 * width}:
        raise ModelError(f"{BANK_FILE} holds latents of another width")
    return frames

"""``POST /reconstruct`` and ``POST /dream``: messages, calls, answers, examples.

Both need token dynamics beside the model that answers the other calls (a folder
``vqvae-dynamics`` among the variants); a service without one answers them 404.
"""

from __future__ import annotations

import asyncio
import base64
import io
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, StrictInt, StrictStr, model_validator
from starlette.requests import Request
from starlette.responses import Response

from iwm.errors import DataError
from iwm.serving import answers, wire
from iwm.serving.actions import position
from iwm.serving.limits import image_file
from iwm.serving.wire import RequestError

if TYPE_CHECKING:
    from iwm.serving.config import Limits
    from iwm.serving.dreaming import Dreamer, Image, Images, Start
    from iwm.serving.models import Models
    from iwm.serving.runtime import Runtime

GIF_FRAMES_A_SECOND = 10
IMAGE_TYPES = ("image/png", "image/jpeg")


class ReconstructRequest(BaseModel):
    """An image, as base64 of a PNG or JPEG, or as a path below the server's image root."""

    model_config = ConfigDict(extra="ignore")
    image_b64: StrictStr | None = None
    image_path: StrictStr | None = None

    @model_validator(mode="after")
    def _one_image(self) -> ReconstructRequest:
        if (self.image_b64 is None) == (self.image_path is None):
            raise ValueError("image_b64 or image_path: expected exactly one of the two")
        return self


class DreamRequest(BaseModel):
    """One image or several in a row to begin with, and the actions to imagine.

    ``images_b64``: oldest first; ``past_actions``: what led from each of them to the next,
    ``null`` where it is not known.
    ``format``: ``png``, a picture for every action, or ``gif``, one that moves.
    """

    model_config = ConfigDict(extra="ignore")
    image_b64: StrictStr | None = None
    images_b64: Annotated[list[StrictStr], Field(min_length=1)] | None = None
    past_actions: list[StrictStr | None] | None = None
    actions: Annotated[list[StrictStr], Field(min_length=1)]
    seed: Annotated[StrictInt, Field(ge=0, lt=2**63)] = 0
    format: Literal["png", "gif"] = "png"

    @model_validator(mode="after")
    def _some_image(self) -> DreamRequest:
        if (self.image_b64 is None) == (self.images_b64 is None):
            raise ValueError("image_b64 or images_b64: expected exactly one of the two")
        return self

    @property
    def images(self) -> list[tuple[str, str]]:
        """(field, base64) of every image."""
        if self.image_b64 is not None:
            return [("image_b64", self.image_b64)]
        return [(f"images_b64.{i}", text) for i, text in enumerate(self.images_b64 or ())]


class TokensResponse(BaseModel):
    """The grid of tokens, and how many words each is chosen from."""

    rows: int
    columns: int
    codes: int


class ReconstructResponse(BaseModel):
    """What came back through the tokens, at the model's size, and how near it is to the image
    at that size.
    """

    image_b64: str = Field(description="PNG")
    psnr: float = Field(description="dB, at most 60")
    ssim: float
    tokens: TokensResponse
    bits: float = Field(description="Of all tokens")
    compression_ratio: float = Field(description="24 bits a pixel over the bits of the tokens")
    timestamp: float


class DreamResponse(BaseModel):
    """The frames imagined, one for every action, in order."""

    frames_b64: list[str] | None = Field(description="PNGs; null where a GIF was asked for")
    gif_b64: str | None = Field(description="null where PNGs were asked for")
    actions: list[str] = Field(description="In the vocabulary's own words")
    milliseconds: float = Field(description="Of the dream")
    timestamp: float


@dataclass(frozen=True)
class DreamJob:
    """A dream to be dreamt; ``stop`` ends it."""

    dreamer: Dreamer
    start: Start
    actions: tuple[str, ...]
    seed: int
    stop: threading.Event

    def run(self) -> tuple[Images, float]:
        """Frames ``[K, H, W, 3]``, and the milliseconds they took."""
        begun = time.perf_counter()
        frames = self.dreamer.dream(self.start, self.actions, self.seed, self.stop.is_set)
        return frames, 1000 * (time.perf_counter() - begun)


async def reconstruct(runtime: Runtime, models: Models, request: Request, body: bytes) -> Response:
    """``POST /reconstruct``."""
    dreamer = _dreamer(models, "reconstruct")
    data = await _image(runtime, request, body)
    codec = dreamer.codec
    pixels = await runtime.decode(codec, data)
    found = await runtime.reconstruct(codec, pixels)
    rows, columns = found.tokens
    return answers.json_response(
        {
            "image_b64": _b64(png_of(found.image)),
            "psnr": found.psnr,
            "ssim": found.ssim,
            "tokens": {"rows": rows, "columns": columns, "codes": found.codes},
            "bits": found.bits,
            "compression_ratio": found.compression,
            "timestamp": time.time(),
        }
    )


async def dream(runtime: Runtime, models: Models, _: Request, body: bytes) -> Response:
    """``POST /dream``."""
    from iwm.serving.dreaming import Start

    dreamer = _dreamer(models, "dream")
    message = wire.parse_request(DreamRequest, body)
    past, actions = check_dream(dreamer, runtime.config.limits, message)
    pixels = [
        await runtime.decode(dreamer.codec, wire.decode_base64(text, field), field)
        for field, text in message.images
    ]
    start = Start(np.stack(pixels), past)
    job = DreamJob(dreamer, start, actions, message.seed, threading.Event())
    try:
        frames, milliseconds = await runtime.dream(job.run)
    finally:
        job.stop.set()  # whoever stops waiting stops the dream
    loop = asyncio.get_running_loop()
    written = await loop.run_in_executor(runtime.decoders, _written, frames, message.format)
    return answers.json_response(
        {
            **written,
            "actions": list(actions),
            "milliseconds": milliseconds,
            "timestamp": time.time(),
        }
    )


def check_dream(
    dreamer: Dreamer, limits: Limits, message: DreamRequest
) -> tuple[tuple[str | None, ...] | None, tuple[str, ...]]:
    """What can be refused before an image is decoded.

    Returns:
        The past and the wanted actions in the vocabulary's own words.

    Raises:
        RequestError: 422 naming the field.
    """
    if len(message.actions) > limits.max_dream_steps:
        raise RequestError(
            422,
            f"actions: expected at most {limits.max_dream_steps}, given {len(message.actions)}",
        )
    count = len(message.images)
    if count > dreamer.context:
        raise RequestError(
            422, f"images_b64: expected at most {dreamer.context} for this model, given {count}"
        )
    known = message.past_actions
    if known is not None and len(known) != count - 1:
        raise RequestError(
            422,
            f"past_actions: expected {count - 1}, one from each image to the next, given "
            f"{len(known)}",
        )
    past = None if known is None else _words(dreamer, known, "past_actions")
    actions = _words(dreamer, message.actions, "actions")
    return past, tuple(name for name in actions if name is not None)


def facts(dreamer: Dreamer | None) -> dict[str, Any] | None:
    """What ``GET /model`` says of the generative model; ``None`` without one."""
    if dreamer is None:
        return None
    card = dreamer.card
    return {
        "name": card.get("model"),
        "version": card.get("version"),
        "alias": card.get("alias"),
        "weights_sha256": card.get("weights_sha256"),
        "vocabulary": list(dreamer.vocabulary),
        "context": dreamer.context,
        "image_size": list(dreamer.codec.size),
    }


def examples(image: str, dreamer: Dreamer | None, timestamp: float) -> tuple[Any, Any]:
    """Requests and answers for the documentation, in the loaded model's own words.

    Args:
        image: a PNG as base64.
        dreamer: ``None`` where none is loaded.
        timestamp: of the answers.

    Returns:
        Call -> {name: request}, and call -> answer.
    """
    actions = list(dreamer.vocabulary[:2]) if dreamer else ["move_forward", "turn_left"]
    requests: dict[str, dict[str, Any]] = {
        "reconstruct": {"base64": {"image_b64": image}},
        "dream": {
            "one_image": {"image_b64": image, "actions": actions, "seed": 1},
            "moving": {"image_b64": image, "actions": actions, "format": "gif"},
        },
    }
    if dreamer is None or dreamer.context > 1:
        requests["dream"]["two_images"] = {
            "images_b64": [image, image],
            "past_actions": actions[:1],
            "actions": actions,
        }
    return requests, {
        "reconstruct": {
            "image_b64": image,
            "psnr": 27.4,
            "ssim": 0.93,
            "tokens": {"rows": 16, "columns": 16, "codes": 1024},
            "bits": 2560.0,
            "compression_ratio": 38.4,
            "timestamp": timestamp,
        },
        "dream": {
            "frames_b64": [image] * len(actions),
            "gif_b64": None,
            "actions": actions,
            "milliseconds": 61.0,
            "timestamp": timestamp,
        },
    }


def png_of(image: Image) -> bytes:
    """A PNG of pixels ``[H, W, 3]``, lossless, the fast setting."""
    from PIL import Image as PillowImage

    buffer = io.BytesIO()
    PillowImage.fromarray(image).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def gif_of(frames: Sequence[Image], fps: int = GIF_FRAMES_A_SECOND) -> bytes:
    """A GIF that repeats for ever; a palette of its own for every frame."""
    from PIL import Image as PillowImage

    pictures = [PillowImage.fromarray(frame) for frame in frames]
    buffer = io.BytesIO()
    pictures[0].save(
        buffer,
        "GIF",
        save_all=True,
        append_images=pictures[1:],
        duration=round(1000 / fps),
        loop=0,
        optimize=False,
    )
    return buffer.getvalue()


def _dreamer(models: Models, call: str) -> Dreamer:
    if models.dreamer is None:
        raise RequestError(
            404,
            f"{call}: this service holds no generative model (vqvae-dynamics); it holds "
            f"{', '.join(models.engines())}",
        )
    return models.dreamer


async def _image(runtime: Runtime, request: Request, body: bytes) -> bytes:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind in IMAGE_TYPES:
        return body
    message = wire.parse_request(ReconstructRequest, body)
    if message.image_b64 is not None:
        return wire.decode_base64(message.image_b64)
    config = runtime.config
    path, root = str(message.image_path), config.image_root
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(runtime.decoders, image_file, path, root, config.limits)


def _words(dreamer: Dreamer, names: Sequence[str | None], field: str) -> tuple[str | None, ...]:
    words = dreamer.vocabulary
    try:
        return tuple(None if name is None else words[position(name, words)] for name in names)
    except DataError as error:
        raise RequestError(422, f"{field}: {error}") from None


def _written(frames: Images, form: str) -> dict[str, Any]:
    if form == "gif":
        return {"frames_b64": None, "gif_b64": _b64(gif_of(list(frames)))}
    return {"frames_b64": [_b64(png_of(frame)) for frame in frames], "gif_b64": None}


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode()

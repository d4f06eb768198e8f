"""The calls: from a body to the models and back to an answer, one function an endpoint."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import Response

from iwm.serving import answers, messages, wire
from iwm.serving.jobs import check_plan, plan_job, predict_job, rollout_job, surprise_job
from iwm.serving.limits import image_file
from iwm.serving.runtime import Runtime
from iwm.serving.wire import RequestError

if TYPE_CHECKING:
    from iwm.serving.models import Models

IMAGE_TYPES = ("image/png", "image/jpeg")

Call = Callable[[Runtime, "Models", Request, bytes], Coroutine[Any, Any, Response]]


async def _image(runtime: Runtime, request: Request, body: bytes) -> tuple[bytes, bool]:
    """An image's bytes, and whether patches are wanted."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind in IMAGE_TYPES:
        wanted = answers.flag(request.query_params.get("return_patches"), "return_patches")
        return body, wanted
    message = wire.parse_request(messages.EncodeRequest, body)
    if message.image_b64 is not None:
        return wire.decode_base64(message.image_b64), message.return_patches
    config = runtime.config
    path, root = str(message.image_path), config.image_root
    loop = asyncio.get_running_loop()
    data = await loop.run_in_executor(runtime.decoders, image_file, path, root, config.limits)
    return data, message.return_patches


async def encode(runtime: Runtime, models: Models, request: Request, body: bytes) -> Response:
    """``POST /encode``."""
    data, patches = await _image(runtime, request, body)
    z_cls, z_patches = await runtime.see(models.main, data)
    accept = request.headers.get("accept", "")
    return answers.encoded(accept, z_cls, z_patches if patches else None, models.variant)


async def encode_dual(runtime: Runtime, models: Models, request: Request, body: bytes) -> Response:
    """``POST /encode_dual``."""
    if not models.streams:
        raise RequestError(
            404,
            "encode_dual: this service holds no dual streams; it holds "
            f"{', '.join(models.engines())}",
        )
    data, patches = await _image(runtime, request, body)

    async def through(name: str) -> tuple[wire.Floats, wire.Floats | None]:
        engine = models.streams[name]
        z_cls, z_patches = await runtime.encode(engine, await runtime.decode(engine, data))
        return z_cls, z_patches if patches else None

    # Both at once: one decodes while the other computes.
    semantic, equivariant = await asyncio.gather(*(through(name) for name in models.streams))
    return answers.encoded_dual(semantic, equivariant, tuple(models.streams))


async def predict(runtime: Runtime, models: Models, _: Request, body: bytes) -> Response:
    """``POST /predict``."""
    engine = models.main
    message = wire.parse_request(messages.PredictRequest, body)
    job = predict_job(engine, runtime.config.limits, message)
    return answers.predicted(*await runtime.roll_out(engine, job))


async def rollout(runtime: Runtime, models: Models, _: Request, body: bytes) -> Response:
    """``POST /rollout``."""
    engine = models.main
    message = wire.parse_request(messages.RolloutRequest, body)
    job = rollout_job(engine, runtime.config.limits, message)
    return answers.rolled_out(*await runtime.roll_out(engine, job))


async def plan(runtime: Runtime, models: Models, _: Request, body: bytes) -> Response:
    """``POST /plan``."""
    engine, limits = models.main, runtime.config.limits
    message = wire.parse_request(messages.PlanRequest, body)
    check_plan(engine, limits, message)
    goal = message.goal_z_cls
    if message.goal_image_b64 is not None:
        data = wire.decode_base64(message.goal_image_b64, "goal_image_b64")
        goal, _ignored = await runtime.see(engine, data, "goal_image_b64")
    job = plan_job(engine, message, goal)
    return answers.planned(await runtime.plan(job), job.words)


async def surprise(runtime: Runtime, models: Models, _: Request, body: bytes) -> Response:
    """``POST /surprise``."""
    engine = models.main
    message = wire.parse_request(messages.SurpriseRequest, body)
    came = message.z_cls
    if came is None:
        came, _ignored = await runtime.see(engine, wire.decode_base64(str(message.image_b64)))
    job = surprise_job(engine, message, came)
    return answers.surprised(await runtime.surprise(engine, job))

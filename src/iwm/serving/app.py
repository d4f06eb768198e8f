"""The HTTP application: routes, errors in one shape, answers with every key.

Importing this module loads neither torch nor weights; :meth:`Runtime.load` does.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

from iwm.errors import ConfigError, DataError, IwmError
from iwm.serving import answers, wire
from iwm.serving.batching import Batcher
from iwm.serving.config import ServiceConfig
from iwm.serving.jobs import predict_job, rollout_job
from iwm.serving.limits import Admission, ClientGone, image_file, read_body, until_gone
from iwm.serving.wire import RequestError

if TYPE_CHECKING:
    from iwm.serving.engine import Engine

logger = logging.getLogger("iwm.serving")

IMAGE_TYPES = ("image/png", "image/jpeg")


class Runtime:
    """What a running service holds: the engine, its queue, its counters.

    Args:
        config: bounds and switches.
        engine: ``None`` until (or unless) the weights are there.
    """

    def __init__(self, config: ServiceConfig, engine: Engine | None = None) -> None:
        self.config = config
        self.engine = engine
        self.reason = "no model folder is set (IWM_MODEL_PATH)"
        self.device = str(engine.device) if engine else config.device
        self.admission = Admission(config.limits)
        self.batcher: Batcher[Any, Any] = Batcher(self._compute, config.limits.max_batch)
        # Decoding releases the GIL; two threads keep ahead of the model on small machines.
        self.decoders = ThreadPoolExecutor(2, thread_name_prefix="iwm-decode")
        self.started = time.monotonic()
        self.counts = {"encode": 0, "predict": 0, "rollout": 0}

    def load(self) -> None:
        """Load the engine; a model that cannot be loaded leaves the service up, saying why.

        Raises:
            ConfigError: the device does not exist.
        """
        from iwm.serving.engine import Engine, choose_device

        self.device = str(choose_device(self.config.device))
        if self.config.model_path is None:
            return
        try:
            self.engine = Engine.load(self.config.model_path, self.config.device)
        except ConfigError:
            raise
        except IwmError as error:
            self.reason = str(error)
            logger.error("model not loaded: %s", error)

    @property
    def variant(self) -> str:
        """Name of the model variant in answers."""
        card = self.engine.card if self.engine else {}
        return self.config.model_variant or str(card.get("phase", "core"))

    def ready(self) -> Engine:
        """The engine.

        Raises:
            RequestError: 503, no model is loaded.
        """
        if self.engine is None:
            raise RequestError(503, f"model not loaded: {self.reason}")
        return self.engine

    def _compute(self, key: Hashable, items: Sequence[Any]) -> Sequence[Any]:
        """One batch, in the model's thread. Items of a key have equal shapes."""
        from iwm.serving.engine import Earlier

        engine = self.ready()
        if key == "encode":
            latents = engine.encode(np.stack(items))
            return list(zip(latents.z_cls, latents.z_patches, strict=True))
        first = items[0]
        out = engine.rollout(
            np.stack([job.z_cls for job in items]),
            np.stack([job.actions for job in items]),
            None if first.z_patches is None else np.stack([job.z_patches for job in items]),
            Earlier(
                np.stack([job.past_cls for job in items]),
                np.stack([job.past_actions for job in items]),
            )
            if len(first.past_cls)
            else None,
        )
        return [
            (
                out.z_cls[i],
                None if out.z_patches is None else out.z_patches[i],
                None if out.mrr is None else out.mrr[i],
                None if out.uncertainty is None else out.uncertainty[i],
            )
            for i in range(len(items))
        ]

    async def decode(self, data: bytes) -> Any:
        """Pixels at the model's size.

        Raises:
            RequestError: 422 with the reason.
        """
        prepare = self.ready().preprocess.decode
        limit = self.config.limits.max_pixels
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self.decoders, prepare, data, limit)
        except DataError as error:
            raise RequestError(422, f"image: {error}") from None

    def close(self) -> None:
        """Stop the threads."""
        self.batcher.close()
        self.decoders.shutdown(wait=True, cancel_futures=True)


async def encode(runtime: Runtime, request: Request, body: bytes) -> Response:
    """``POST /encode``."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind in IMAGE_TYPES:
        data = body
        patches = answers.flag(request.query_params.get("return_patches"), "return_patches")
    else:
        message = wire.parse_request(wire.EncodeRequest, body)
        patches = message.return_patches
        if message.image_b64 is not None:
            data = wire.decode_base64(message.image_b64)
        else:
            config = runtime.config
            data = await asyncio.get_running_loop().run_in_executor(
                runtime.decoders,
                image_file,
                str(message.image_path),
                config.image_root,
                config.limits,
            )
    pixels = await runtime.decode(data)
    z_cls, z_patches = await runtime.batcher.submit("encode", pixels)
    runtime.counts["encode"] += 1
    return answers.encoded(
        request.headers.get("accept", ""), z_cls, z_patches if patches else None, runtime.variant
    )


async def predict(runtime: Runtime, _: Request, body: bytes) -> Response:
    """``POST /predict``."""
    message = wire.parse_request(wire.PredictRequest, body)
    job = predict_job(runtime.ready(), runtime.config.limits, message)
    result = await runtime.batcher.submit(job.key, job)
    runtime.counts["predict"] += 1
    return answers.predicted(*result)


async def rollout(runtime: Runtime, _: Request, body: bytes) -> Response:
    """``POST /rollout``."""
    message = wire.parse_request(wire.RolloutRequest, body)
    job = rollout_job(runtime.ready(), runtime.config.limits, message)
    result = await runtime.batcher.submit(job.key, job)
    runtime.counts["rollout"] += 1
    return answers.rolled_out(*result)


Handler = Callable[[Runtime, Request, bytes], Coroutine[Any, Any, Response]]


def create_app(config: ServiceConfig, runtime: Runtime | None = None) -> FastAPI:
    """The application; ``app.state.runtime`` is its :class:`Runtime`, not yet loaded."""
    app = FastAPI(
        title="iwm",
        description="An image world model: encode frames, predict and roll out latents.",
        docs_url=None,
        redoc_url=None,
    )
    held = runtime or Runtime(config)
    app.state.runtime = held
    limits = config.limits

    def serve(handler: Handler) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        async def endpoint(request: Request) -> Response:
            with held.admission.place():
                held.ready()
                body = await read_body(request, limits)
                try:
                    async with asyncio.timeout(limits.timeout_s):
                        return await until_gone(request, handler(held, request, body))
                except TimeoutError:
                    raise RequestError(
                        503,
                        f"busy: no answer within {limits.timeout_s:g} s; try again",
                        {"Retry-After": str(limits.retry_after_s)},
                    ) from None

        return endpoint

    for path, handler, message, answer in (
        ("/encode", encode, wire.EncodeRequest, wire.EncodeResponse),
        ("/predict", predict, wire.PredictRequest, wire.PredictResponse),
        ("/rollout", rollout, wire.RolloutRequest, wire.RolloutResponse),
    ):
        app.post(path, **answers.documented(path, message, answer))(serve(handler))

    @app.get("/health", response_model=wire.HealthResponse)
    async def health() -> Response:
        """Whether the model is loaded, and what was served so far. Always 200."""
        loaded = held.engine is not None
        return answers.json_response(
            {
                "status": "ok" if loaded else "model_not_loaded",
                "model_loaded": loaded,
                "model_variant": held.variant,
                "device": held.device,
                "uptime_seconds": time.monotonic() - held.started,
                **{f"total_{name}s": count for name, count in held.counts.items()},
            }
        )

    @app.get("/metrics")
    async def metrics() -> Response:
        """Prometheus text: calls served, requests pending and waiting, model loaded."""
        gauges = {
            "pending": held.admission.pending,
            "waiting": held.batcher.waiting,
            "model_loaded": int(held.engine is not None),
        }
        return answers.prometheus(held.counts, gauges)

    @app.get("/model", responses={503: {"model": wire.ErrorResponse}})
    async def model() -> Response:
        """The model card: version, alias, data revision, commit, gate report, sizes."""
        return answers.json_response(answers.model_card(held.ready(), held.variant))

    _error_handlers(app)
    return app


def _error_handlers(app: FastAPI) -> None:
    def refuse(status: int, detail: str, headers: Any = None) -> Response:
        return answers.json_response({"detail": detail}, status, headers)

    @app.exception_handler(RequestError)
    async def refused(_: Request, error: RequestError) -> Response:
        return refuse(error.status, error.detail, error.headers)

    @app.exception_handler(HTTPException)
    async def http_error(_: Request, error: HTTPException) -> Response:
        return refuse(error.status_code, str(error.detail), error.headers)

    @app.exception_handler(ClientGone)
    async def client_gone(_: Request, __: ClientGone) -> Response:
        return refuse(499, "the client hung up")

    @app.exception_handler(Exception)
    async def bug(_: Request, __: Exception) -> Response:
        # Logged with its traceback by the server; the client learns nothing of our insides.
        return refuse(500, "an error of this service; its log has the cause")

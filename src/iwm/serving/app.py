"""The HTTP application: routes, errors in one shape, answers with every key."""

from __future__ import annotations

import time

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import PlainTextResponse, Response

from iwm.serving import answers, calls, direct, imagery, intentions, messages, openapi, page
from iwm.serving.config import ServiceConfig
from iwm.serving.runtime import Runtime
from iwm.serving.wire import RequestError

CALLS: dict[str, calls.Call] = {
    "encode": calls.encode,
    "predict": calls.predict,
    "rollout": calls.rollout,
    "encode_dual": calls.encode_dual,
    "plan": calls.plan,
    "surprise": calls.surprise,
    "reconstruct": imagery.reconstruct,
    "dream": imagery.dream,
    "imagine": intentions.imagine,
    "intention": intentions.intention,
}


def create_app(config: ServiceConfig, runtime: Runtime | None = None) -> FastAPI:
    """The application.

    ``app.state.runtime`` is its :class:`Runtime`, not yet loaded; ``app.state.endpoints`` has the
    calls by path, for a :class:`~iwm.serving.direct.Direct` of a server around it.
    """
    app = FastAPI(title="iwm", docs_url=None, redoc_url=None)
    held = runtime or Runtime(config)
    app.state.runtime = held
    endpoints = {f"/{name}": direct.endpoint(held, name, call) for name, call in CALLS.items()}
    for path, endpoint in endpoints.items():
        app.post(path, **openapi.call(path[1:]))(endpoint)
    app.add_middleware(direct.Direct, endpoints=endpoints)
    app.state.endpoints = endpoints
    _add_facts(app, held)
    app.include_router(page.router(held))
    _error_handlers(app)
    app.openapi = openapi.Document(app, held)  # type: ignore[method-assign]
    if config.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=config.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type"],
        )
    return app


def _add_facts(app: FastAPI, held: Runtime) -> None:
    @app.get("/health", response_model=messages.HealthResponse)
    async def health() -> Response:
        """Whether the model is loaded, and what was served so far. Always 200."""
        loaded, served = held.models is not None, held.metrics.served
        return answers.json_response(
            {
                "status": "ok" if loaded else "model_not_loaded",
                "model_loaded": loaded,
                "model_variant": held.variant,
                "device": held.device,
                "uptime_seconds": time.monotonic() - held.started,
                **{f"total_{name}s": served[name] for name in ("encode", "predict", "rollout")},
            }
        )

    @app.get("/metrics", response_class=PlainTextResponse, responses=openapi.refusals(401))
    async def metrics() -> Response:
        """Prometheus text: answers, latencies, requests pending and waiting, reloads."""
        gauges = {
            "pending": held.admission.pending,
            "waiting": held.waiting,
            "model_loaded": int(held.models is not None),
        }
        kind = "text/plain; version=0.0.4; charset=utf-8"
        return Response(held.metrics.text(gauges), headers={"Content-Type": kind})

    @app.get("/model", response_model=messages.ModelResponse, responses=openapi.refusals(401, 503))
    async def model() -> Response:
        """The model card: version, alias, data revision, commit, gate report, sizes."""
        return answers.json_response(answers.model_card(held.ready()))


def _error_handlers(app: FastAPI) -> None:
    @app.exception_handler(RequestError)
    async def refused(_: Request, error: RequestError) -> Response:
        return direct.refusal(error.status, error.detail, error.headers)

    @app.exception_handler(HTTPException)
    async def http_error(_: Request, error: HTTPException) -> Response:
        return direct.refusal(error.status_code, str(error.detail), error.headers)

    @app.exception_handler(Exception)
    async def bug(_: Request, __: Exception) -> Response:
        # Logged with its traceback by the server; the client learns nothing of our insides.
        return direct.refusal(500, direct.BUG)

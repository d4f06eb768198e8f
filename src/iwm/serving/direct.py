"""The short way of a call: from the server to the models, past routers and their layers.

Routing, dependency injection and the middleware of an application cost more than a small
model does, and a POST to a call needs none of it. All else (pages, facts, the schema, wrong
methods) goes the long way.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import Response

from iwm.serving import answers
from iwm.serving.limits import ClientGone, attended, read_body
from iwm.serving.wire import RequestError

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

    from iwm.serving.calls import Call
    from iwm.serving.runtime import Runtime

logger = logging.getLogger("iwm.serving")
access = logging.getLogger("iwm.access")
"""A line an answer, where logs are JSON."""

GONE = 499
"""Status of what nobody reads: the client hung up."""

BUG = "an error of this service; its log has the cause"

Endpoint = Callable[[Request], Awaitable[Response]]


def refusal(status: int, detail: str, headers: Mapping[str, str] | None = None) -> Response:
    """The one shape of everything that is not an answer."""
    return answers.json_response({"detail": detail}, status, headers)


def endpoint(held: Runtime, name: str, call: Call) -> Endpoint:
    """A call within its bounds, timed and counted; what is refused is a response, too."""
    limits = held.config.limits

    async def answer(request: Request) -> Response:
        with held.admission.place():
            held.ready()
            body = await read_body(request, limits)
            # Taken once: the whole request is answered by the same models.
            models = held.ready()
            response = await attended(request, call(held, models, request, body), limits)
            response.raw_headers.append((b"x-iwm-model", models.main.name.encode()))
            return response

    async def within(request: Request) -> Response:
        started, status = time.perf_counter(), 500
        try:
            response = await answer(request)
            status = response.status_code
        except RequestError as error:
            status = error.status
            response = refusal(status, error.detail, error.headers)
        except ClientGone:
            status = GONE
            response = refusal(GONE, "the client hung up")
        except Exception:
            # The client learns nothing of our insides.
            logger.exception("/%s: an error of this service", name)
            response = refusal(500, BUG)
        finally:
            seconds = time.perf_counter() - started
            held.metrics.observe(name, status, seconds)
            if access.isEnabledFor(logging.INFO):
                facts = {"call": name, "status": status, "seconds": round(seconds, 6)}
                access.info("POST /%s %d", name, status, extra=facts)
        return response

    within.__doc__ = call.__doc__
    return within


class Direct:
    """Middleware that answers the calls itself. It may stand at several places: the outermost
    answers.

    Args:
        app: gets everything else.
        endpoints: path -> what answers a POST to it.
    """

    def __init__(self, app: ASGIApp, endpoints: Mapping[str, Endpoint]) -> None:
        self._app, self._endpoints = app, endpoints

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or pass on."""
        if scope["type"] == "http" and scope["method"] == "POST":
            found = self._endpoints.get(scope["path"])
            if found is not None:
                response = await found(Request(scope, receive, send))
                await response(scope, receive, send)
                return
        await self._app(scope, receive, send)

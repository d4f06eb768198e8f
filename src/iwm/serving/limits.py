"""Bounds at the door: how many requests, how much body, how long it may take, which files."""

from __future__ import annotations

import asyncio
import hmac
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from iwm.serving.batching import Overdue
from iwm.serving.config import Limits
from iwm.serving.wire import RequestError

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from starlette.requests import Request
    from starlette.types import ASGIApp, Receive, Scope, Send

T = TypeVar("T")

OPEN_PATHS = frozenset({"/", "/health", "/livez", "/readyz", "/healthz"})
"""Answered without a token: probes need no secret, and the page itself asks for it."""


WATCH_AFTER_S = 0.02
"""Most answers are given before this; later it is worth a task to see whether the client hung
up."""


class ClientGone(Exception):
    """The client hung up; nobody reads an answer."""


class Admission:
    """Counts requests in work or waiting; refuses what is beyond the bound."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.pending = 0

    @contextmanager
    def place(self) -> Iterator[None]:
        """Hold one place.

        Raises:
            RequestError: 503 with ``Retry-After``, no place is free.
        """
        if self.pending >= self._limits.max_pending:
            raise RequestError(
                503,
                f"busy: {self.pending} requests are waiting; try again",
                {"Retry-After": str(self._limits.retry_after_s)},
            )
        self.pending += 1
        try:
            yield
        finally:
            self.pending -= 1


async def read_body(request: Request, limits: Limits) -> bytes:
    """The whole body, never more than the bound in memory.

    Raises:
        RequestError: 413 too large, 408 too slow, 400 a wrong ``Content-Length``.
        ClientGone: the client hung up half-way.
    """
    too_large = RequestError(413, f"body: expected at most {limits.max_body_bytes} bytes")
    headers = request.scope["headers"]
    declared = next((value for name, value in headers if name == b"content-length"), None)
    if declared is not None:
        if not declared.isdigit():
            given = declared.decode("latin-1")
            raise RequestError(400, f"Content-Length: expected a number, given {given!r}")
        if int(declared) > limits.max_body_bytes:
            raise too_large
    chunks, size = [], 0
    try:
        async with asyncio.timeout(limits.body_timeout_s):
            more = True
            while more:
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise ClientGone
                chunk = message.get("body", b"")
                size += len(chunk)
                if size > limits.max_body_bytes:
                    raise too_large
                chunks.append(chunk)
                more = message.get("more_body", False)
    except TimeoutError:
        raise RequestError(
            408, f"body: expected whole within {limits.body_timeout_s:g} s, {size} bytes came"
        ) from None
    return b"".join(chunks)


async def attended(request: Request, work: Coroutine[Any, Any, T], limits: Limits) -> T:
    """Await ``work`` as long as somebody waits for it; then it is cancelled.

    The body must have been read. Who answers before :data:`WATCH_AFTER_S` pays for no watch.

    Raises:
        ClientGone: the client hung up first.
        RequestError: 503, no answer within ``limits.timeout_s``, or none is expected by then.
    """
    task = asyncio.current_task()
    assert task is not None
    watch = _Watch(request, task, limits)
    try:
        return await work
    except Overdue:
        raise _busy(limits) from None
    except asyncio.CancelledError:
        if watch.reason is None:
            raise
        task.uncancel()
        raise watch.reason from None
    finally:
        watch.end()


def _busy(limits: Limits) -> RequestError:
    return RequestError(
        503,
        f"busy: no answer within {limits.timeout_s:g} s; try again",
        {"Retry-After": str(limits.retry_after_s)},
    )


class _Watch:
    """Cancels a task when nobody waits for it any more; ``reason`` then says why."""

    def __init__(self, request: Request, task: asyncio.Task[Any], limits: Limits) -> None:
        self._request, self._task, self._limits = request, task, limits
        self._looking: asyncio.Task[None] | None = None
        self.reason: Exception | None = None
        after = min(WATCH_AFTER_S, limits.timeout_s / 2)
        self._left_s = limits.timeout_s - after
        self._timer = asyncio.get_running_loop().call_later(after, self._begin)

    def _begin(self) -> None:
        self._looking = asyncio.get_running_loop().create_task(self._look())

    async def _look(self) -> None:
        try:
            async with asyncio.timeout(self._left_s):
                while (await self._request.receive())["type"] != "http.disconnect":
                    pass
            self.reason = ClientGone()
        except TimeoutError:
            self.reason = _busy(self._limits)
        self._task.cancel()

    def end(self) -> None:
        """Look no more."""
        self._timer.cancel()
        if self._looking is not None:
            self._looking.cancel()


def image_file(path: str, root: Path | None, limits: Limits) -> bytes:
    """Read ``image_path``: a file below ``root``, symlinks resolved.

    Raises:
        RequestError: 403 outside the root or switched off, 404 no such file, 413 too large.
    """
    if root is None:
        raise RequestError(403, "image_path: reading files is switched off (IWM_IMAGE_ROOT)")
    if "\0" in path:
        raise RequestError(422, "image_path: expected a path without NUL")
    base = root.resolve()
    try:
        target = (base / path).resolve()
        if not target.is_relative_to(base):
            raise RequestError(403, "image_path: expected a path below the image root")
        # A named pipe would block for ever, a device has no end.
        descriptor = os.open(target, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
        with os.fdopen(descriptor, "rb") as file:
            if not target.is_file():
                raise RequestError(404, "image_path: not a file")
            data = file.read(limits.max_body_bytes + 1)
    except (OSError, RuntimeError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "cannot be read"
        raise RequestError(404, f"image_path: {reason}") from None
    if len(data) > limits.max_body_bytes:
        raise RequestError(413, f"image_path: expected at most {limits.max_body_bytes} bytes")
    return data


class TokenMiddleware:
    """Asks every HTTP call outside :data:`OPEN_PATHS` for ``Authorization: Bearer <token>``."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app = app
        self._expected = f"Bearer {token}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, or answer 401."""
        if scope["type"] == "http" and scope["path"] not in OPEN_PATHS:
            given = next((v for k, v in scope["headers"] if k == b"authorization"), b"")
            if not hmac.compare_digest(given, self._expected):
                await _refuse(send)
                return
        await self._app(scope, receive, send)


async def _refuse(send: Send) -> None:
    headers = [(b"content-type", b"application/json"), (b"www-authenticate", b"Bearer")]
    await send({"type": "http.response.start", "status": 401, "headers": headers})
    body = b'{"detail":"Authorization: expected the bearer token of this service"}'
    await send({"type": "http.response.body", "body": body})

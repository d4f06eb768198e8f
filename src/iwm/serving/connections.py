"""Where a request arrives: bounds on what comes before it, and the layer it meets first.

uvicorn bounds how long an idle connection lives after an answer, but waits for ever for the
first line of a request, and for the rest of a half-sent head.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from iwm.serving.config import Limits

if TYPE_CHECKING:
    from starlette.types import ASGIApp

LIMITS = Limits()
_LATE = b'{"detail":"head: expected a whole request within %g s"}' % LIMITS.head_timeout_s


_JOINED = 65_536
"""Bytes of a body up to which copying it costs less than handing over two pieces."""


class Joining:
    """A transport that sends an answer's head with its body: one call of the system instead of
    two, and a client that wakes once.

    Args:
        transport: what sends.
        loop: a head whose body has not come by its next turn goes alone.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop = transport, loop
        self._held = b""
        self.is_closing = transport.is_closing

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Send after what is held, or hold."""
        if not self._held:
            self._held = data
            self._loop.call_soon(self._flush)
            return
        held, self._held = self._held, b""
        if len(data) > _JOINED:
            self._transport.writelines((held, data))
        else:
            self._transport.write(held + data)

    def close(self) -> None:
        """Close when everything is sent."""
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        held, self._held = self._held, b""
        if held and not self.is_closing():
            self._transport.write(held)


class BoundedProtocol(HttpToolsProtocol):
    """HTTP/1.1 whose heads must arrive in time, on a bounded number of connections."""

    around: ClassVar[list[Callable[[Any], Any]]] = []
    """Layers around the server's application, the outermost last."""
    _timer: asyncio.TimerHandle | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for layer in self.around:
            self.app = layer(self.app)
        # A line that nobody reads need not be put together.
        self.access_log = self.access_log and self.access_logger.isEnabledFor(logging.INFO)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a client, if there is a place."""
        super().connection_made(cast("asyncio.Transport", Joining(transport, self.loop)))
        if len(self.connections) > LIMITS.max_connections:
            transport.close()
            return
        self._await_head()

    def data_received(self, data: bytes) -> None:
        """Bytes came; between two requests they are the beginning of a head."""
        super().data_received(data)
        if self._in_request():
            self._forget()
        elif self._timer is None:
            self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client went."""
        self._forget()
        super().connection_lost(exc)

    def _in_request(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _await_head(self) -> None:
        self._timer = self.loop.call_later(LIMITS.head_timeout_s, self._late)

    def _forget(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _late(self) -> None:
        self._timer = None
        if self._in_request() or self.transport.is_closing():
            return
        lines = (
            b"HTTP/1.1 408 Request Timeout",
            b"content-type: application/json",
            b"content-length: %d" % len(_LATE),
            b"connection: close",
        )
        self.transport.write(b"\r\n".join((*lines, b"", _LATE)))
        self.transport.close()


def install(*layers: Callable[[ASGIApp], ASGIApp]) -> None:
    """Let uvicorn serve by it, in this process, from the next start of a server on.

    Args:
        layers: around whatever application is served, the outermost last.
    """
    from uvicorn import config

    BoundedProtocol.around = list(layers)
    config.HTTP_PROTOCOLS["auto"] = f"{__name__}:{BoundedProtocol.__name__}"

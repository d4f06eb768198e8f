"""Bounds on what comes before a request: heads that never end, clients that never ask.

uvicorn bounds how long an idle connection lives after an answer, but waits for ever for the
first line of a request, and for the rest of a half-sent head.
"""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from iwm.serving.config import Limits

LIMITS = Limits()
_LATE = b'{"detail":"head: expected a whole request within %g s"}' % LIMITS.head_timeout_s


class BoundedProtocol(HttpToolsProtocol):
    """HTTP/1.1 whose heads must arrive in time, on a bounded number of connections."""

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a client, if there is a place."""
        super().connection_made(transport)
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


def install() -> None:
    """Let uvicorn serve by it, in this process, from the next start of a server on."""
    from uvicorn import config

    config.HTTP_PROTOCOLS["auto"] = f"{__name__}:{BoundedProtocol.__name__}"

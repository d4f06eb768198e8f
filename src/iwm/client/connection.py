"""What both clients share: counters, retries with back-off, and how answers and errors are read."""

from __future__ import annotations

import random
from typing import Any, TypeVar

import httpx
import orjson
from tenacity import (
    RetryCallState,
    retry_if_exception_type,
    stop_after_attempt,
    wait_exponential_jitter,
)

from iwm.client.calls import Call
from iwm.errors import ServiceError

RETRIES = 8
"""Waits of 0.1, 0.2, 0.4 ... 5 s: together 16 s, in which a killed worker is back."""
MAX_WAIT_S = 5.0
_JITTER_S = 0.1
_BACK_OFF = wait_exponential_jitter(initial=0.1, max=MAX_WAIT_S, jitter=_JITTER_S)

T = TypeVar("T")


class Refused(ServiceError):
    """The service understood the request and will not serve it; asking again does not help.

    Attributes:
        status: the HTTP status.
    """

    def __init__(self, line: str, status: int) -> None:
        super().__init__(line)
        self.status = status


class Busy(Exception):
    """A 503; ``after`` is the server's ``Retry-After`` in seconds, if it gave one."""

    def __init__(self, line: str, after: float | None) -> None:
        super().__init__(line)
        self.after = after


_LOST = (httpx.ConnectError, httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError)
FAILURES = (ServiceError, Busy, httpx.HTTPError)
"""All that :func:`answer` and a request of httpx raise."""


def _wait(state: RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    if isinstance(error, Busy) and error.after is not None:
        return min(error.after, MAX_WAIT_S) + random.uniform(0, _JITTER_S)
    return _BACK_OFF(state)


def answer(call: Call[T], response: httpx.Response) -> T:
    """What a response says.

    Raises:
        Busy: 503.
        Refused: 4xx, with the service's reason.
        ServiceError: another status, or an answer that is not what the call's should be.
    """
    if response.status_code == 200:
        try:
            return call.read(orjson.loads(response.content))
        except (KeyError, TypeError, ValueError) as error:
            raise ServiceError(f"{call.path}: not an answer of this service: {error!r}") from None
    try:
        detail = str(orjson.loads(response.content)["detail"])
    except (orjson.JSONDecodeError, KeyError, TypeError):
        detail = response.text[:200]
    line = f"{call.path}: {response.status_code}: {detail}"
    if response.status_code == 503:
        after = response.headers.get("retry-after", "")
        raise Busy(line, float(after) if after.isdigit() else None)
    if response.status_code >= 500:
        raise ServiceError(line)
    raise Refused(line, response.status_code)


class Connection:
    """Where the service is, how often to ask again, and what has been asked so far.

    Attributes:
        base_url: the address.
        total_requests: calls made, retries not counted.
        total_errors: calls that failed in the end.
    """

    def __init__(self, base_url: str, timeout: float, retries: int, token: str | None) -> None:
        self.base_url = base_url.rstrip("/")
        self.total_requests = 0
        self.total_errors = 0
        self._retry: dict[str, Any] = {
            "retry": retry_if_exception_type((Busy, *_LOST)),
            "stop": stop_after_attempt(1 + retries),
            "wait": _wait,
            "reraise": True,
        }
        self._settings: dict[str, Any] = {
            "base_url": self.base_url,
            "timeout": timeout,
            "headers": {"Authorization": f"Bearer {token}"} if token else {},
        }

    def _failed(self, path: str, error: Exception) -> ServiceError:
        self.total_errors += 1
        if isinstance(error, ServiceError):
            return error
        if isinstance(error, Busy):
            return ServiceError(str(error))
        return ServiceError(f"{self.base_url}{path}: {str(error) or type(error).__name__}")

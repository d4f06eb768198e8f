"""The client against scripted servers: retries, back-off, counters, errors."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import orjson
import pytest

from iwm.client import IWMClient, SyncIWMClient
from iwm.errors import ServiceError

PREDICTED = {
    "z_cls_pred": [1.0, 2.0],
    "z_patches_pred": None,
    "mrr": None,
    "uncertainty": 0.5,
    "timestamp": 3.0,
}

Handler = Callable[[httpx.Request], httpx.Response]


def scripted(*steps: Any) -> tuple[Handler, list[httpx.Request]]:
    seen: list[httpx.Request] = []

    def handle(request: httpx.Request) -> httpx.Response:
        step = steps[min(len(seen), len(steps) - 1)]
        seen.append(request)
        if isinstance(step, Exception):
            raise step
        status, body = step
        return httpx.Response(status, content=orjson.dumps(body), headers={"Retry-After": "0"})

    return handle, seen


def sync_client(handler: Handler, **settings: Any) -> SyncIWMClient:
    return SyncIWMClient("http://test", transport=httpx.MockTransport(handler), **settings)


def test_busy_and_lost_are_retried() -> None:
    handler, seen = scripted((503, {"detail": "busy"}), httpx.ReadError("lost"), (200, PREDICTED))
    with sync_client(handler) as client:
        result = client.predict_next(np.zeros(2, np.float32), [0.5])
    assert len(seen) == 3
    assert (client.total_requests, client.total_errors) == (1, 0)
    np.testing.assert_array_equal(result.z_cls_pred, [1, 2])
    assert np.isnan(result.mrr)
    assert orjson.loads(seen[0].content) == {
        "z_cls": [0.0, 0.0],
        "aug_params": [0.5],
        "z_patches": None,
    }


def test_a_wrong_request_is_not_retried() -> None:
    handler, seen = scripted((422, {"detail": "z_cls: expected 16 numbers, given 2"}))
    client = sync_client(handler)
    with pytest.raises(ServiceError, match="/predict: 422: z_cls: expected 16 numbers"):
        client.predict_next([0.0, 0.0], [0.5])
    assert len(seen) == 1
    assert (client.total_requests, client.total_errors) == (1, 1)


def test_retries_end() -> None:
    handler, seen = scripted((503, {"detail": "busy"}))
    client = sync_client(handler, retries=2)
    with pytest.raises(ServiceError, match="503: busy"):
        client.rollout([0.0], [[0.5]])
    assert len(seen) == 3
    assert client.total_errors == 1


def test_health_never_raises() -> None:
    handler, _ = scripted(httpx.ConnectError("refused"))
    client = sync_client(handler)
    answer = client.health()
    assert answer["status"] == "error"
    assert "refused" in answer["error"]

    async def scenario() -> dict[str, Any]:
        async with IWMClient("http://127.0.0.1:9", timeout=2) as other:
            answer = await other.health()
            assert (other.total_requests, other.total_errors) == (1, 1)
            return answer

    assert asyncio.run(scenario())["status"] == "error"


def test_token_travels() -> None:
    handler, seen = scripted((200, PREDICTED))
    sync_client(handler, token="secret").predict_next([0.0], [0.5])
    assert seen[0].headers["authorization"] == "Bearer secret"


def test_pixels_must_be_bytes() -> None:
    handler, _ = scripted((200, PREDICTED))
    with pytest.raises(ValueError, match="expected uint8"):
        sync_client(handler).encode_image(np.zeros((4, 4, 3)))  # type: ignore[arg-type]

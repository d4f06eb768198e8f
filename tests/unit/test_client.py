"""The client against scripted servers: retries, back-off, counters, errors."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import orjson
import pytest
from fakeservice import MOVES, FakeService
from hypothesis import given
from hypothesis import strategies as st

from iwm.client import Candidate, Earlier, IWMClient, Refused, SyncIWMClient, png_of
from iwm.client.connection import _BACK_OFF, RETRIES
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


def test_a_fault_of_the_service_is_no_refusal() -> None:
    handler, seen = scripted((500, {"detail": "oh"}))
    with pytest.raises(ServiceError, match="500: oh") as caught:
        sync_client(handler).model()
    assert not isinstance(caught.value, Refused)
    assert len(seen) == 1


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


PIXELS = np.zeros((4, 4, 3), np.uint8)


def both(service: FakeService, call: Callable[[Any], Any]) -> list[Any]:
    """The same call of the asynchronous client and of its twin; they must agree."""

    async def scenario() -> Any:
        async with IWMClient("http://test", transport=httpx.MockTransport(service)) as client:
            answer = await call(client)
            assert (client.total_requests, client.total_errors) == (1, 0)
            return answer

    answers = [asyncio.run(scenario())]
    with SyncIWMClient("http://test", transport=httpx.MockTransport(service)) as client:
        answers.append(call(client))
    assert service.asked[0] == service.asked[1]
    return answers


@pytest.mark.parametrize(
    "call",
    [
        lambda c: c.model(),
        lambda c: c.encode_image(PIXELS),
        lambda c: c.encode_bytes(png_of(PIXELS)),
        lambda c: c.encode_dual(PIXELS),
        lambda c: c.predict_next([1.0, 2.0], [0.5]),
        lambda c: c.predict_next(np.ones(2), action="up", history=Earlier([[0.0, 1.0]], [None])),
        lambda c: c.rollout([1.0, 2.0], actions=["up", "left"]),
        lambda c: c.plan([1.0, 2.0], np.array([3.0, 4.0]), horizon=3, actions=["up", "right"]),
        lambda c: c.plan([1.0, 2.0], goal_image=PIXELS, seed=5),
        lambda c: c.plan([1.0, 2.0], scoring="far", candidates=7, iterations=2),
        lambda c: c.surprise([1.0, 2.0], [1.0, 3.0], action="up"),
        lambda c: c.surprise([1.0, 2.0], image=PIXELS, aug_params=[0.5]),
    ],
)
def test_every_call_has_a_twin(call: Callable[[Any], Any]) -> None:
    service = FakeService()
    one, other = both(service, call)
    assert type(one) is type(other)
    for name, value in vars(one).items():
        if name != "timestamp":
            np.testing.assert_array_equal(value, vars(other)[name])


def test_both_clients_have_the_same_methods() -> None:
    def signatures(cls: type) -> dict[str, str]:
        return {
            name: str(inspect.signature(method))
            for name, method in vars(cls).items()
            if inspect.isfunction(method) and not name.startswith("_")
        }

    assert signatures(IWMClient) == signatures(SyncIWMClient)


def test_a_plan_and_its_runners_up() -> None:
    service = FakeService()
    plan = both(service, lambda c: c.plan([1.0, 2.0], [3.0, 2.0], horizon=2))[0]
    assert (plan.actions, plan.score) == (("right", "right"), 0.0)
    assert plan.runners_up == (Candidate(("noop", "noop"), -2.0),)
    np.testing.assert_array_equal(plan.z_cls_seq, [[2, 2], [3, 2]])
    assert service.asked[0][1] == {
        "z_cls": [1.0, 2.0],
        "goal_z_cls": [3.0, 2.0],
        "horizon": 2,
        "candidates": 300,
        "iterations": 10,
        "seed": 0,
    }


def test_the_card() -> None:
    card = both(FakeService(), lambda c: c.model())[0]
    assert (card.name, card.version, card.alias, card.commit) == ("plane", "3", "champion", "def")
    assert (card.vocabulary, card.image_size) == (tuple(MOVES), (4, 4))
    assert card.streams == ("action",)


def test_a_refusal_has_its_status() -> None:
    handler, _ = scripted((404, {"detail": "no such path"}))
    with pytest.raises(Refused) as caught:
        sync_client(handler).model()
    assert caught.value.status == 404


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats(width=32) | st.text(max_size=3),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from([*PREDICTED, "actions", "score"]), inner, max_size=4)
        ),
        max_leaves=12,
    )
)
def test_an_answer_that_is_none_of_the_services_is_a_service_error(body: Any) -> None:
    handler, _ = scripted((200, body))
    client = sync_client(handler)
    for call in (
        lambda: client.plan([0.0], [1.0]),
        lambda: client.predict_next([0.0], [0.5]),
        client.model,
        lambda: client.surprise([0.0], [1.0], action="up"),
    ):
        with suppress(ServiceError):  # anything else would be a bug
            call()


def test_retries_last_until_a_killed_worker_is_back() -> None:
    waits = [
        _BACK_OFF(SimpleNamespace(attempt_number=number))  # type: ignore[arg-type]
        for number in range(1, RETRIES + 1)
    ]
    assert sum(waits) > 15

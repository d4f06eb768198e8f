"""The play tab's wire: actions in, frames out, refusals in words, places that come back."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from fastapi import FastAPI
from PIL import Image
from starlette.testclient import TestClient, WebSocketTestSession
from starlette.websockets import WebSocketDisconnect
from tinydreams import SIZE, VOCABULARY, tiny_dreams

from iwm.app.live import Play, router
from iwm.serving.dreaming import Dreamer, Sessions, Start

PIXELS = np.random.default_rng(0).integers(0, 256, (4, SIZE, SIZE, 3), np.uint8)


class TwoStarts:
    def __len__(self) -> int:
        return 2

    def start(self, place: int) -> Start:
        place %= 2
        return Start(PIXELS[place : place + 2], (VOCABULARY[place],), f"start {place}")


@pytest.fixture(scope="module")
def dreamer() -> Dreamer:
    return Dreamer(tiny_dreams(), "cpu")


def client(dreamer: Dreamer, most: int = 2, idle_s: float = 60.0) -> TestClient:
    app = FastAPI()
    app.include_router(router(Play(Sessions(dreamer, most), TwoStarts(), idle_s)))
    return TestClient(app)


@pytest.fixture
def socket(dreamer: Dreamer) -> Iterator[WebSocketTestSession]:
    with client(dreamer).websocket_connect("/live") as connected:
        yield connected


def frame(socket: WebSocketTestSession) -> Any:
    return np.asarray(Image.open(io.BytesIO(socket.receive_bytes())))


def reset(socket: WebSocketTestSession, **more: Any) -> tuple[Any, Any]:
    socket.send_json({"do": "reset", **more})
    return socket.receive_json()["started"], frame(socket)


def test_a_dream_over_the_wire_is_the_models(
    socket: WebSocketTestSession, dreamer: Dreamer
) -> None:
    started, first = reset(socket, place=1, seed=7)
    assert started == {"caption": "start 1", "past": [VOCABULARY[1]]}
    assert np.array_equal(first, PIXELS[2])
    frames = []
    for action in ("turn_left", "attack"):
        socket.send_json({"do": "step", "action": action})
        frames.append(frame(socket))
    expected = dreamer.dream(TwoStarts().start(1), ["turn_left", "attack"], 7)
    assert np.array_equal(np.stack(frames), expected)
    assert reset(socket)[0]["caption"] in ("start 0", "start 1")


@pytest.mark.parametrize(
    ("message", "line"),
    [
        ("[]", "message: "),
        ("{}", "message: "),
        ('{"do": "fly"}', "message: "),
        ('{"do": "step"}', "step.action: Field required"),
        ('{"do": "reset", "seed": -1}', "reset.seed: "),
        ('{"do": "step", "action": "noop"}', "reset: expected before the first action"),
        ("no JSON", "message: Invalid JSON"),
    ],
)
def test_what_cannot_be_done_is_said(socket: WebSocketTestSession, message: str, line: str) -> None:
    socket.send_text(message)
    assert socket.receive_json()["error"].startswith(line)
    reset(socket)  # and the dream goes on
    socket.send_json({"do": "step", "action": "fly"})
    assert socket.receive_json()["error"].startswith("expected one of noop, move_forward")


def test_places_are_bounded_and_come_back(dreamer: Dreamer) -> None:
    shared = client(dreamer, most=1)
    with shared.websocket_connect("/live") as one:
        reset(one)
        with shared.websocket_connect("/live") as two:
            assert two.receive_json() == {
                "error": "all 1 places to play are taken; try again later"
            }
            with pytest.raises(WebSocketDisconnect) as ended:
                two.receive_text()
            assert ended.value.code == 1013
        reset(one)
    with shared.websocket_connect("/live") as three:
        reset(three)


def test_whoever_does_nothing_is_sent_home(dreamer: Dreamer) -> None:
    with client(dreamer, idle_s=0.05).websocket_connect("/live") as socket:
        assert socket.receive_json()["error"].startswith("asleep: nothing was done for 0.05 s")
        with pytest.raises(WebSocketDisconnect):
            socket.receive_text()


def test_a_page_from_elsewhere_may_not_play(dreamer: Dreamer) -> None:
    own = client(dreamer)
    foreign = {"Origin": "http://elsewhere.example", "Host": "testserver"}
    with pytest.raises(WebSocketDisconnect), own.websocket_connect("/live", headers=foreign):
        pass
    same = {"Origin": "http://testserver", "Host": "testserver"}
    with own.websocket_connect("/live", headers=same) as socket:
        reset(socket)

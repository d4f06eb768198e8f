"""What hostile, slow and vanishing clients do to a running service, and a worker's sudden end."""

from __future__ import annotations

import base64
import io
import json
import os
import signal
import socket
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from servicetools import pending, worker
from tinymodel import WIDTH

from iwm.client import SyncIWMClient
from pipelines._served import Served, served

ROOT = Path(__file__).resolve().parents[2]
LATENT = np.linspace(-1, 1, WIDTH).tolist()


@pytest.fixture
def http(whole: Served) -> Iterator[httpx.Client]:
    """A client; after each fault the service is well and holds no place for it."""
    with httpx.Client(base_url=whole.url, timeout=60) as client:
        yield client
        assert client.get("/health").json()["status"] == "ok"
        right = {"z_cls": LATENT, "action": "noop"}
        assert client.post("/predict", json=right).status_code == 200
        assert settles(whole)


def settles(service: Served) -> bool:
    """Whether every place is free again before long."""
    until = time.monotonic() + 30
    while pending(service):
        if time.monotonic() > until:
            return False
        time.sleep(0.1)
    return True


def refused(answer: httpx.Response, status: int, word: str) -> None:
    assert answer.status_code == status, answer.text[:300]
    assert set(answer.json()) == {"detail"}
    assert word in answer.json()["detail"]


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *chunks: bytes) -> bytes:
    """A PNG of 8-bit grey with an honest header and whatever comes after it."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IEND", b"")


def post_image(http: httpx.Client, data: bytes) -> httpx.Response:
    return http.post("/encode", content=data, headers={"Content-Type": "image/png"})


def test_a_decompression_bomb(http: httpx.Client, whole: Served) -> None:
    before = worker(whole).memory_info().rss
    zeros = zlib.compress(bytes(40_000_000), 9)
    bomb = png(50_000, 50_000, chunk(b"IDAT", zeros))
    assert len(bomb) < 50_000
    refused(post_image(http, bomb), 422, "pixels")
    text = base64.b64encode(bomb).decode()
    refused(http.post("/encode", json={"image_b64": text}), 422, "pixels")
    # One that hides in a comment: two chunks of 100 MB each when unpacked.
    comment = b"Comment\0\0" + zlib.compress(bytes(100_000_000), 9)
    row = zlib.compress(bytes(9) * 8)
    hidden = png(8, 8, chunk(b"zTXt", comment), chunk(b"zTXt", comment), chunk(b"IDAT", row))
    assert post_image(http, hidden).status_code in (200, 422)
    # More pixels than the header says.
    assert post_image(http, png(8, 8, chunk(b"IDAT", zeros))).status_code in (200, 422)
    assert worker(whole).memory_info().rss < before + 150_000_000


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "1e39", "null", '"1"'])
def test_numbers_that_are_none(http: httpx.Client, number: str) -> None:
    rest = ",".join(["0.5"] * (WIDTH - 1))
    for path, body in (
        ("/predict", f'{{"z_cls": [{number},{rest}], "aug_params": [0]}}'),
        ("/rollout", f'{{"z_cls": [0,{rest}], "aug_seq": [[{number}]]}}'),
        ("/plan", f'{{"z_cls": [0,{rest}], "goal_z_cls": [{number},{rest}]}}'),
        (
            "/surprise",
            f'{{"z_cls_prev": [{number},{rest}], "action": "noop", "z_cls": [0,{rest}]}}',
        ),
    ):
        answer = http.post(path, content=body)
        assert answer.status_code in (400, 422), answer.text[:300]
        assert set(answer.json()) == {"detail"}


def test_ten_million_steps(http: httpx.Client) -> None:
    head, tail = b'{"z_cls": ' + json.dumps(LATENT).encode() + b', "aug_seq": [', b"[0]]}"
    whole_body = head + b"[0]," * 9_999_999 + tail
    refused(http.post("/rollout", content=whole_body), 413, "bytes")

    def pieces() -> Iterator[bytes]:
        yield head
        for _ in range(1000):
            yield b"[0]," * 10_000
        yield tail

    # In chunks, without a length: it stops reading at the bound. The client may see the answer,
    # or a connection that was closed while it still wrote.
    with suppress(httpx.TransportError):
        refused(http.post("/rollout", content=pieces()), 413, "bytes")
    refused(http.post("/rollout", content=head + b"[0]," * 999_999 + tail), 422, "aug_seq")
    names = {"z_cls": LATENT, "actions": ["noop"] * 1_000_000}
    refused(http.post("/rollout", json=names), 422, "actions")
    plan = {"z_cls": LATENT, "goal_z_cls": LATENT}
    for field in ("horizon", "candidates", "iterations"):
        refused(http.post("/plan", json={**plan, field: 10_000_000}), 422, field)


@pytest.mark.parametrize(
    "path",
    [
        "../secret.png",
        "sub/../../secret.png",
        "/etc/passwd",
        "....//secret.png",
        "%2e%2e/secret.png",
        "..\\secret.png",
        "link.png",
        "outside/secret.png",
        "no\0thing.png",
        "pipe",
        "",
        ".",
        "x" * 5000,
    ],
    ids=repr,
)
def test_paths_that_lead_elsewhere(
    http: httpx.Client, images: Path, tmp_path: Path, path: str
) -> None:
    (images / "sub").mkdir(exist_ok=True)
    inside = io.BytesIO()
    Image.new("RGB", (32, 32), "red").save(inside, "PNG")
    (images / "sub/inside.png").write_bytes(inside.getvalue())
    for name, target in (
        ("link.png", tmp_path / "secret.png"),
        ("outside", tmp_path),
        ("near.png", images / "sub/inside.png"),
    ):
        (images / name).unlink(missing_ok=True)
        (images / name).symlink_to(target)
    (tmp_path / "secret.png").write_bytes(inside.getvalue())
    (images.parent / "secret.png").write_bytes(inside.getvalue())
    if not (images / "pipe").exists():
        os.mkfifo(images / "pipe")
    answer = http.post("/encode", json={"image_path": path})
    assert answer.status_code in (403, 404, 422), answer.text[:300]
    assert str(tmp_path) not in answer.text
    for good in ("sub/inside.png", "near.png", "sub/../sub/inside.png"):
        assert http.post("/encode", json={"image_path": good}).status_code == 200


def connect(service: Served) -> socket.socket:
    host, _, port = service.url.removeprefix("http://").partition(":")
    return socket.create_connection((host, int(port)), timeout=60)


def head(length: int) -> bytes:
    return (
        f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        f"Content-Length: {length}\r\n\r\n"
    ).encode()


def test_a_client_that_drips(http: httpx.Client, whole: Served) -> None:
    with connect(whole) as slow:
        slow.sendall(head(1000))
        slow.settimeout(0.2)
        answer, until = b"", time.monotonic() + 60
        while not answer and time.monotonic() < until:
            slow.sendall(b" ")
            assert http.get("/health").status_code == 200
            try:
                answer = slow.recv(1000)
            except TimeoutError:
                continue
        # Head and body may come in packets of their own.
        slow.settimeout(10)
        while b"}" not in answer and (more := slow.recv(1000)):
            answer += more
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b'{"detail":"body: expected whole within' in answer


def test_a_body_that_stops_half_way(http: httpx.Client, whole: Served) -> None:
    with connect(whole) as half:
        half.sendall(head(1000) + b'{"z_cls": [')
        half.shutdown(socket.SHUT_WR)
        answer = half.recv(1000)
    assert not answer or answer.split()[1].startswith(b"4")


@pytest.mark.parametrize(
    "sent", [b"", b"POST /predict HT", b"POST /predict HTTP/1.1\r\nHost: a\r\nX-Slow: "]
)
def test_a_head_that_never_ends(http: httpx.Client, whole: Served, sent: bytes) -> None:
    with connect(whole) as slow:
        slow.sendall(sent)
        answer = received(slow)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"head: expected" in answer
    assert http.get("/health").status_code == 200


def test_a_second_head_that_never_ends(whole: Served) -> None:
    with connect(whole) as slow:
        slow.sendall(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
        assert slow.recv(10_000).startswith(b"HTTP/1.1 200 ")
        slow.sendall(b"GET /hea")
        assert b"408 Request Timeout" in received(slow)


def received(client: socket.socket) -> bytes:
    """All that comes until the service hangs up."""
    client.settimeout(30)
    parts = []
    while part := client.recv(10_000):
        parts.append(part)
    return b"".join(parts)


def test_clients_that_hang_up(http: httpx.Client, whole: Served) -> None:
    body = json.dumps(
        {"z_cls": LATENT, "goal_z_cls": LATENT, "horizon": 16, "candidates": 300}
    ).encode()
    request = head(len(body)).replace(b"/predict", b"/plan") + body
    for linger in (False, True):
        for _ in range(20):
            gone = connect(whole)
            gone.sendall(request)
            if linger:  # reset, not closed
                gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            gone.close()
    assert settles(whole)


def test_many_who_never_ask(http: httpx.Client, whole: Served) -> None:
    idle = [connect(whole) for _ in range(150)]
    for one in idle[:75]:
        one.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\n")  # a head that never ends
    try:
        right: dict[str, Any] = {"z_cls": LATENT, "action": "noop"}
        for _ in range(10):
            assert http.post("/predict", json=right).status_code == 200
    finally:
        for one in idle:
            one.close()


def test_kill_9_of_a_worker_loses_nothing(models: Path, tmp_path: Path) -> None:
    """Four clients ask all the time; their retries outlast the worker's restart."""
    environ = {"IWM_MODEL_PATH": str(models / "action"), "PYTHONPATH": str(ROOT)}
    with served("bentos.iwm:IWM", tmp_path, environ=environ, wait_s=300) as service:
        # New connections wait in the supervisor's queue until the next worker takes them, which
        # is when it has started; how long a start takes here is known.
        patience = max(60.0, 8 * service.ready_s)
        ended = threading.Event()
        answered: list[int] = [0] * 4
        failures: list[Exception] = []

        def ask(number: int) -> None:
            with SyncIWMClient(service.url, timeout=patience) as client:
                while not ended.is_set():
                    try:
                        client.predict_next(LATENT, [0.1])
                    except Exception as error:
                        failures.append(error)
                        return
                    answered[number] += 1

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        while min(answered) < 5:
            assert not failures
            time.sleep(0.05)
        victim = worker(service)
        victim.send_signal(signal.SIGKILL)
        victim.wait(30)
        killed = time.monotonic()
        before = list(answered)
        while any(now < then + 5 for now, then in zip(answered, before, strict=True)):
            assert not failures, failures
            assert time.monotonic() - killed < patience, "no worker took over"
            time.sleep(0.05)
        away = time.monotonic() - killed
        ended.set()
        for thread in threads:
            thread.join()
        assert not failures
        print(f"kill -9: answers again after {away:.1f} s (its first start: {service.ready_s:.1f})")
        # 15 s on a free machine; anywhere of the order of a start, which is most of it.
        assert away < max(15.0, 3 * service.ready_s)

"""A chat server with OpenAI's interface on loopback, that answers as it is told to."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "sk-fake-0123456789abcdef"


class FakeChat:
    """Behaviours are taken from ``script`` one a request; ``normal`` when it is empty.

    ``normal``, ``plain`` (no thoughts), ``slow`` (``delay_s`` before the answer), ``drip`` (a
    piece every 50 ms without end), ``busy`` (429, try again in ``retry_after``), ``broken`` (500),
    ``malformed`` (a piece that is not JSON), ``strange`` (JSON of another shape), ``cut``
    (the connection ends within the answer), ``unfinished`` (it ends as if all had been said),
    ``no_answer`` (words, no JSON), ``beyond`` (a future that there is not), ``endless``
    (a megabyte of thoughts).
    """

    def __init__(self) -> None:
        self.script: list[str] = []
        self.answer = '{"index": 2, "confidence": 0.8}'
        self.delay_s, self.retry_after = 1.0, "1"
        self.asked: list[dict[str, Any]] = []
        self.times: list[float] = []
        self.released = threading.Event()
        self.url = ""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    fake: FakeChat

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def do_POST(self) -> None:
        """A chat completion."""
        fake = self.fake
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        fake.times.append(time.monotonic())
        fake.asked.append(body)
        how = fake.script.pop(0) if fake.script else "normal"
        with suppress(BrokenPipeError, ConnectionResetError):
            self._behave(how, str(self.headers.get("Authorization", "")))

    def _behave(self, how: str, authorization: str) -> None:
        fake = self.fake
        if self.path != "/v1/chat/completions":
            self._refuse(404, "no such path")
        elif authorization != f"Bearer {KEY}":
            # Servers do repeat what they were given.
            self._refuse(401, f"Incorrect API key provided: {authorization}")
        elif how == "busy":
            self._refuse(429, "slow down", {"Retry-After": fake.retry_after})
        elif how == "broken":
            self._refuse(500, "out of order")
        else:
            self._stream(how)

    def _refuse(self, status: int, message: str, headers: dict[str, str] | None = None) -> None:
        data = json.dumps({"error": {"message": message, "type": "error"}}).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _stream(self, how: str) -> None:
        fake = self.fake
        if how == "slow":
            fake.released.wait(fake.delay_s)
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        if how == "drip":
            while not fake.released.wait(0.05):
                self._piece({"reasoning_content": "hm "})
            return
        if how == "endless":
            for _ in range(100):
                self._piece({"reasoning_content": "hm " * 4000})
        if how != "plain":
            self._piece({"role": "assistant", "reasoning_content": "The third "})
            self._piece({"reasoning_content": "leads there."})
        if how == "malformed":
            self._chunk(b'data: {"choices": [{\n\n')
        if how == "strange":
            self._chunk(b'data: {"choices": [{"delta": 7}]}\n\n')
        answer = {"no_answer": "The third.", "beyond": '{"index": 99}'}.get(how, fake.answer)
        half = len(answer) // 2
        self._piece({"content": answer[:half]})
        if how == "cut":
            self.close_connection = True
            self.connection.close()
            return
        self._piece({"content": answer[half:]})
        if how != "unfinished":
            self._piece({}, "stop")
            self._chunk(b"data: [DONE]\n\n")
        self.wfile.write(b"0\r\n\r\n")

    def _piece(self, delta: dict[str, Any], finish: str | None = None) -> None:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        event = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "fake"}
        self._chunk(b"data: " + json.dumps({**event, "choices": [choice]}).encode() + b"\n\n")

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()


@contextmanager
def chat_server() -> Iterator[FakeChat]:
    """A server that runs until the block ends."""
    fake = FakeChat()
    handler = type("Handler", (_Handler,), {"fake": fake})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    fake.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield fake
    finally:
        fake.released.set()
        server.shutdown()
        server.server_close()
        thread.join()

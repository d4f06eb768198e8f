"""A client that costs little: raw HTTP/1.1 over kept connections, requests written beforehand.

It runs on the same cores as what it measures, so nothing of an answer is parsed but its
status line and its length.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class HttpRequest:
    """One POST, as bytes to send."""

    port: int
    raw: bytes


def post(port: int, path: str, body: bytes, headers: Mapping[str, str]) -> HttpRequest:
    """A POST to the loopback address."""
    lines = [f"POST {path} HTTP/1.1", "Host: 127.0.0.1", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return HttpRequest(port, "\r\n".join([*lines, "", ""]).encode() + body)


@dataclass
class Sample:
    """What was seen of one subject: latencies of answered requests, and the rest by status."""

    milliseconds: list[float] = field(default_factory=list)
    seconds: float = 0.0
    refused: dict[int, int] = field(default_factory=dict)
    clients_s: float = 0.0
    """Core-seconds that those who asked took."""
    subject_s: float = 0.0
    """Core-seconds of who answered, where they were counted."""

    def add(self, other: Sample) -> None:
        """Another lap of the same."""
        self.milliseconds += other.milliseconds
        self.seconds += other.seconds
        self.clients_s += other.clients_s
        self.subject_s += other.subject_s
        for status, count in other.refused.items():
            self.refused[status] = self.refused.get(status, 0) + count

    def percentile(self, percent: float) -> float:
        """Milliseconds.

        Raises:
            RuntimeError: nothing was answered.
        """
        if not self.milliseconds:
            raise RuntimeError(f"nothing was answered; refused, by status: {self.refused}")
        return float(np.percentile(self.milliseconds, percent))

    @property
    def throughput(self) -> float:
        """Answers a second."""
        return len(self.milliseconds) / self.seconds


async def exchange(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: HttpRequest
) -> tuple[int, bytes]:
    """Send one request, wait for its answer: (status, body)."""
    writer.write(request.raw)
    head = await reader.readuntil(b"\r\n\r\n")
    status = int(head[9:12])
    lowered = head.lower()
    start = lowered.index(b"content-length:") + 15
    length = int(lowered[start : lowered.index(b"\r\n", start)])
    return status, await reader.readexactly(length)


async def _client(
    requests: Sequence[HttpRequest], number: int, until: float, sample: Sample
) -> None:
    turns = itertools.islice(itertools.cycle(requests), number % len(requests), None)
    port = requests[0].port
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**24)
    try:
        while (started := time.perf_counter()) < until:
            status, _ = await exchange(reader, writer, next(turns))
            if status == 200:
                sample.milliseconds.append(1000 * (time.perf_counter() - started))
            else:
                sample.refused[status] = sample.refused.get(status, 0) + 1
    finally:
        writer.close()


def lap(requests: Sequence[HttpRequest], clients: int, seconds: float) -> Sample:
    """``clients`` that each send the next of ``requests``, in turn, when the last is answered."""

    async def run() -> Sample:
        sample = Sample()
        started, spent = time.perf_counter(), time.process_time()
        until = started + seconds
        await asyncio.gather(
            *(_client(requests, number, until, sample) for number in range(clients))
        )
        sample.seconds = time.perf_counter() - started
        sample.clients_s = time.process_time() - spent
        return sample

    return asyncio.run(run())


def once(request: HttpRequest) -> bytes:
    """The body of one answer.

    Raises:
        RuntimeError: it is not 200.
    """

    async def run() -> tuple[int, bytes]:
        reader, writer = await asyncio.open_connection("127.0.0.1", request.port, limit=2**24)
        try:
            return await exchange(reader, writer, request)
        finally:
            writer.close()

    status, body = asyncio.run(run())
    if status != 200:
        raise RuntimeError(f"status {status}: {body[:300]!r}")
    return body

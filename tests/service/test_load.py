"""Sixteen clients at once, and more than there are places for."""

from __future__ import annotations

import asyncio
import base64
import io
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from servicetools import pending, resident
from tinymodel import WIDTH

from pipelines._served import Served

CLIENTS = 16


def mixed() -> list[tuple[str, dict[str, Any]]]:
    """What an agent asks in turn."""
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    latent = np.linspace(-1, 1, WIDTH).tolist()
    return [
        ("/encode", {"image_b64": base64.b64encode(buffer.getvalue()).decode()}),
        ("/predict", {"z_cls": latent, "aug_params": [0.1, 0.2]}),
        ("/rollout", {"z_cls": latent, "aug_seq": [[0.1]] * 5}),
    ]


async def _client(
    url: str, start: int, until: float, statuses: Counter[int], elapsed: list[float]
) -> None:
    calls = mixed()
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        turn = start
        while time.monotonic() < until:
            path, body = calls[turn % len(calls)]
            started = time.perf_counter()
            answer = await client.post(path, json=body)
            elapsed.append(1000 * (time.perf_counter() - started))
            statuses[answer.status_code] += 1
            if answer.status_code == 503:
                assert int(answer.headers["retry-after"]) > 0
                assert "busy" in answer.json()["detail"]
            turn += 1


def load(service: Served, seconds: float) -> Counter[int]:
    """Statuses of :data:`CLIENTS` clients that ask without pause."""
    statuses: Counter[int] = Counter()
    elapsed: list[float] = []

    async def run() -> None:
        until = time.monotonic() + seconds
        await asyncio.gather(
            *(_client(service.url, start, until, statuses, elapsed) for start in range(CLIENTS))
        )

    asyncio.run(run())
    p50, p99 = np.percentile(elapsed, (50, 99))
    print(f"load: {dict(statuses)} in {seconds:g} s, p50 {p50:.1f} ms, p99 {p99:.1f} ms")
    return statuses


def only(statuses: Counter[int], allowed: Sequence[int]) -> None:
    assert statuses[200]
    assert set(statuses) <= set(allowed), statuses


def test_a_few_seconds_of_load(whole: Served) -> None:
    only(load(whole, 3), [200, 503])
    assert pending(whole) == 0


def test_beyond_its_places_it_says_busy_and_recovers(whole: Served) -> None:
    latent = np.linspace(-1, 1, WIDTH).tolist()
    plan = {"z_cls": latent, "goal_z_cls": latent, "horizon": 8, "candidates": 300}

    async def burst() -> list[httpx.Response]:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=whole.url, timeout=60, limits=limits) as client:
            return await asyncio.gather(*(client.post("/plan", json=plan) for _ in range(100)))

    answers = asyncio.run(burst())
    statuses = Counter(answer.status_code for answer in answers)
    only(statuses, [200, 503])
    refused = [answer for answer in answers if answer.status_code == 503]
    assert refused
    assert all(answer.headers["retry-after"] == "1" for answer in refused)
    assert pending(whole) == 0
    only(load(whole, 0.5), [200])


@pytest.mark.slow
def test_a_minute_of_load(whole: Served) -> None:
    only(load(whole, 20), [200, 503])
    before = resident(whole)
    only(load(whole, 60), [200, 503])
    after = resident(whole)
    print(f"load: {before / 2**20:.1f} MiB before, {after / 2**20:.1f} after")
    assert after < 1.02 * before
    assert pending(whole) == 0

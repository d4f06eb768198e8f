"""A busy service: the queue limit, batching, clients that hang up, answers that come too late."""

from __future__ import annotations

import asyncio
import io
import threading
from typing import Any

import httpx
import numpy as np
import orjson
from PIL import Image
from tinymodel import SIZE, WIDTH

from iwm.errors import DataError
from iwm.serving.app import Runtime, create_app
from iwm.serving.config import Limits, ServiceConfig
from iwm.serving.engine import Engine

LATENT = [0.1] * WIDTH


def client(runtime: Runtime) -> httpx.AsyncClient:
    app = create_app(runtime.config, runtime)
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")


class Slow:
    """An engine whose rollouts wait until they are let go."""

    def __init__(self, engine: Engine) -> None:
        self.go = threading.Event()
        self.batches: list[int] = []
        self.engine = engine

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    def rollout(self, z_cls: Any, *rest: Any) -> Any:
        self.batches.append(len(z_cls))
        assert self.go.wait(20)
        return self.engine.rollout(z_cls, *rest)


def test_past_the_queue_limit_is_503_and_the_rest_is_batched(engine: Engine) -> None:
    slow = Slow(engine)
    runtime = Runtime(ServiceConfig(limits=Limits(max_pending=5)), slow)  # type: ignore[arg-type]

    async def scenario() -> list[httpx.Response]:
        async with client(runtime) as http:
            body = {"z_cls": LATENT, "aug_params": [0.0]}
            calls = [asyncio.create_task(http.post("/predict", json=body)) for _ in range(9)]
            while sum(call.done() for call in calls) < 4:
                await asyncio.sleep(0.01)
            slow.go.set()
            return await asyncio.gather(*calls)

    answers = asyncio.run(scenario())
    runtime.close()
    assert sorted(answer.status_code for answer in answers) == [200] * 5 + [503] * 4
    refused = next(answer for answer in answers if answer.status_code == 503)
    assert refused.headers["retry-after"] == "1"
    assert sum(slow.batches) == 5
    assert len(slow.batches) <= 2  # what came while it was busy went together
    assert runtime.admission.pending == 0


def test_a_client_that_hangs_up_frees_its_place(engine: Engine) -> None:
    slow = Slow(engine)
    runtime = Runtime(ServiceConfig(), slow)  # type: ignore[arg-type]
    app = create_app(runtime.config, runtime)
    body = orjson.dumps({"z_cls": LATENT, "aug_params": [0.0]})

    async def call(hang_up: asyncio.Event | None) -> list[Any]:
        sent: list[Any] = []
        messages = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> Any:
            if messages:
                return messages.pop()
            if hang_up is None:
                await asyncio.sleep(3600)
            else:
                await hang_up.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {
            "type": "http",
            "method": "POST",
            "path": "/predict",
            "query_string": b"",
            "headers": [(b"content-type", b"application/json")],
        }
        await app(scope, receive, send)
        return sent

    async def scenario() -> None:
        hang_up = asyncio.Event()
        first = asyncio.create_task(call(None))
        while not slow.batches:
            await asyncio.sleep(0.01)
        second = asyncio.create_task(call(hang_up))
        while runtime.batcher.waiting == 0:
            await asyncio.sleep(0.01)
        hang_up.set()
        await second
        assert runtime.admission.pending == 1
        slow.go.set()
        assert (await first)[0]["status"] == 200

    asyncio.run(scenario())
    runtime.close()
    assert slow.batches == [1]  # the second was never computed


def test_what_is_no_image_spoils_nobody_elses_batch(engine: Engine) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    runtime = Runtime(ServiceConfig(), engine)
    items = [b"no image", pixels, buffer.getvalue(), buffer.getvalue()[:50]]
    first, seen, decoded, last = runtime._compute((engine, "encode"), items)
    alone = runtime._compute((engine, "encode"), [b"no image"])
    runtime.close()
    assert all(isinstance(each, DataError) for each in (first, last, *alone))
    np.testing.assert_array_equal(seen[0], decoded[0])
    np.testing.assert_allclose(seen[0], engine.encode(pixels[None]).z_cls[0], atol=1e-5)


def test_no_answer_in_time_is_503(engine: Engine) -> None:
    slow = Slow(engine)
    runtime = Runtime(ServiceConfig(limits=Limits(timeout_s=0.05)), slow)  # type: ignore[arg-type]

    async def scenario() -> httpx.Response:
        async with client(runtime) as http:
            answer = await http.post("/predict", json={"z_cls": LATENT, "aug_params": [0.0]})
            slow.go.set()
            return answer

    answer = asyncio.run(scenario())
    runtime.close()
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")

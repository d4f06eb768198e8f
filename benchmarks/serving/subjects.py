"""What is measured: the bare engine, our service, LitServe twice, a plain FastAPI application.

All have the same weights, the same cores and as many torch threads. The servers of a model run
side by side, but only the one whose lap it is runs; the others are stopped by a signal, so that
a polling worker costs nobody else.
"""

from __future__ import annotations

import base64
import importlib.util
import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
import orjson
import psutil

from benchmarks.serving.traffic import HttpRequest, Sample, post
from iwm.serving.engine import Engine
from pipelines._served import free_port, served, stop

ROOT = Path(__file__).resolve().parents[2]
STEPS = 5
MIXED = "mixed"
"""All of :data:`~benchmarks.serving.CALLS` in turn."""
JSON = {"Content-Type": "application/json"}
OURS, LIT, LIT_BATCHES, PLAIN = "iwm", "LitServe", "LitServe, batches", "plain FastAPI"
NOTHING = "HTTP alone"
"""Answers at once, with nothing computed: the ceiling of these clients on these cores."""


@dataclass(frozen=True)
class Inputs:
    """The same for every subject: a 224 x 224 JPEG, a latent, five action vectors."""

    jpeg: bytes
    pixels: npt.NDArray[np.uint8]
    z_cls: npt.NDArray[np.float32]
    actions: npt.NDArray[np.float32]

    @classmethod
    def of(cls, engine: Engine) -> Inputs:
        """Of that model's shapes; the picture is smooth with a little noise, as frames are."""
        from PIL import Image

        rng = np.random.default_rng(0)
        small = Image.fromarray(rng.integers(0, 256, (14, 14, 3), np.uint8))
        smooth = np.asarray(small.resize((224, 224), Image.Resampling.BICUBIC), np.int16)
        picture = np.clip(smooth + rng.integers(-8, 9, smooth.shape), 0, 255).astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, "JPEG", quality=90)
        pixels = engine.preprocess.decode(buffer.getvalue(), picture.size).copy()
        z_cls = engine.encode(pixels[None]).z_cls[0]
        actions = np.zeros((STEPS, engine.aug_dim), np.float32)
        if engine.vocabulary:  # a named action each
            actions[range(STEPS), engine.augmentation_dim + np.arange(STEPS) % 2] = 1.0
        else:
            actions[:] = rng.uniform(-0.3, 0.3, actions.shape)
        return cls(buffer.getvalue(), pixels, z_cls, actions)

    def fields(self, call: str) -> dict[str, Any]:
        """The JSON of a call, as every client of the older service sends it."""
        if call == "encode":
            return {"image_b64": base64.b64encode(self.jpeg).decode(), "return_patches": False}
        if call == "predict":
            return {"z_cls": self.z_cls.tolist(), "aug_params": self.actions[0].tolist()}
        return {"z_cls": self.z_cls.tolist(), "aug_seq": self.actions.tolist()}

    def plan(self, horizon: int = 8, candidates: int = 300, iterations: int = 10) -> dict[str, Any]:
        """The JSON of a plan to the latent itself moved a little."""
        budget = {"horizon": horizon, "candidates": candidates, "iterations": iterations}
        goal = self.z_cls + 0.1 * np.roll(self.z_cls, 1)
        return {"z_cls": self.z_cls.tolist(), "goal_z_cls": goal.tolist(), "seed": 0, **budget}

    def request(self, subject: str, port: int, call: str) -> HttpRequest:
        """That call to a subject that listens on ``port``."""
        if call == "plan":
            return post(port, "/plan", orjson.dumps(self.plan()), JSON)
        if call == "encode, raw":
            headers = {"Content-Type": "image/jpeg", "Accept": "application/octet-stream"}
            return post(port, "/encode", self.jpeg, headers)
        fields = self.fields(call)
        if subject in (LIT, LIT_BATCHES):
            return post(port, "/predict", orjson.dumps({"call": call, **fields}), JSON)
        return post(port, f"/{call}", orjson.dumps(fields), JSON)

    def bare(self, engine: Engine, call: str, count: int = 1) -> Any:
        """The engine called directly, on a batch of ``count``: latents ``[count, ...]``."""
        if call == "encode":
            return engine.encode(np.repeat(self.pixels[None], count, 0)).z_cls
        z_cls = np.repeat(self.z_cls[None], count, 0)
        if call == "predict":
            return engine.predict(z_cls, np.repeat(self.actions[None, 0], count, 0)).z_cls
        return engine.rollout(z_cls, np.repeat(self.actions[None], count, 0)).z_cls


def bare_lap(
    engine: Engine, inputs: Inputs, call: str, seconds: float, count: int = 1, least: int = 1
) -> Sample:
    """Batches of ``count``, ``least`` or more, one after the other; a latency for every item."""
    sample, spent = Sample(), time.process_time()
    began = started = time.perf_counter()
    while started < began + seconds or len(sample.milliseconds) < least * count:
        inputs.bare(engine, call, count)
        ended = time.perf_counter()
        sample.milliseconds += [1000 * (ended - started)] * count
        started = ended
    sample.seconds = started - began
    sample.subject_s = time.process_time() - spent
    return sample


def decoding_s(engine: Engine, inputs: Inputs, seconds: float) -> float:
    """Core-seconds that it takes to make an image's bytes the model's pixels."""
    count, spent, until = 0, time.process_time(), time.perf_counter() + seconds
    while count == 0 or time.perf_counter() < until:
        engine.preprocess.decode(inputs.jpeg, 2**20)
        count += 1
    return (time.process_time() - spent) / count


class Server:
    """A server on the loopback, paused outside its laps.

    Args:
        name: of the subject.
        port: where it listens.
        group: its process group.
    """

    def __init__(self, name: str, port: int, group: int) -> None:
        self.name, self.port, self._group = name, port, group

    @contextmanager
    def running(self) -> Iterator[None]:
        """Awake inside the block."""
        os.killpg(self._group, signal.SIGCONT)
        try:
            yield
        finally:
            self.pause()

    def spent_s(self) -> float:
        """Core-seconds of its processes, since they began."""
        leader = psutil.Process(self._group)
        times = [each.cpu_times() for each in (leader, *leader.children(recursive=True))]
        return float(sum(each.user + each.system for each in times))

    def pause(self) -> None:
        """Stop its processes where they stand."""
        os.killpg(self._group, signal.SIGSTOP)


@contextmanager
def _started(
    name: str, arguments: list[str], port: int, log: Path, env: dict[str, str]
) -> Iterator[Server]:
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", *arguments],
            cwd=ROOT,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        until = time.monotonic() + 120
        while True:
            with suppress(httpx.HTTPError):
                if httpx.get(f"http://127.0.0.1:{port}/openapi.json").status_code == 200:
                    break
            if process.poll() is not None or time.monotonic() > until:
                lines = log.read_text(errors="replace").strip().splitlines()
                raise RuntimeError(f"{name} did not start: {lines[-1] if lines else 'no log'}")
            time.sleep(0.2)
        yield Server(name, port, process.pid)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGCONT)
        stop(process)


@contextmanager
def servers(model: Path, scratch: Path, threads: int, max_batch: int) -> Iterator[list[Server]]:
    """All servers over one model folder, each started, then paused.

    Args:
        model: folder of the weights.
        scratch: a folder for their logs.
        threads: torch threads of each.
        max_batch: bound of the batches of LitServe's second subject; the service's own default.
    """
    common = {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}
    env = {name: value for name, value in os.environ.items() if not name.startswith("IWM_")}
    env |= {**common, "PYTHONPATH": os.pathsep.join([str(ROOT), env.get("PYTHONPATH", "")])}
    with ExitStack() as stack:
        found: list[Server] = []

        def start(name: str, module: str, *arguments: str) -> None:
            port = free_port()
            command = [module, str(model), str(port), *arguments]
            log = scratch / f"{name.replace(' ', '-')}.log"
            found.append(stack.enter_context(_started(name, command, port, log, env)))
            found[-1].pause()

        ours = {"IWM_MODEL_PATH": str(model.resolve()), "IWM_DEVICE": "cpu", **common}
        ours["PYTHONPATH"] = env["PYTHONPATH"]
        running = stack.enter_context(served("bentos.iwm:IWM", scratch, environ=ours))
        found.append(Server(OURS, int(running.url.rpartition(":")[2]), running.pid))
        stack.callback(lambda: os.killpg(running.pid, signal.SIGCONT))
        found[0].pause()
        start(PLAIN, "benchmarks.serving.plain")
        start(NOTHING, "benchmarks.serving.nothing")
        if importlib.util.find_spec("litserve"):
            start(LIT, "benchmarks.serving.lit", "1")
            start(LIT_BATCHES, "benchmarks.serving.lit", str(max_batch))
        yield found

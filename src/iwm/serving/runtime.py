"""What a running service holds: its models, their queues, its counters.

Importing this module loads neither torch nor weights; :meth:`Runtime.load` does.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from iwm.errors import ConfigError, DataError, IwmError, ModelError
from iwm.serving.batching import Batcher
from iwm.serving.config import ServiceConfig
from iwm.serving.embodied import Board
from iwm.serving.limits import Admission
from iwm.serving.metrics import Metrics
from iwm.serving.wire import Floats, RequestError

if TYPE_CHECKING:
    from iwm.serving.dreaming import Codec, Dreamer, Reconstruction
    from iwm.serving.embodied import Imaginer
    from iwm.serving.engine import Engine
    from iwm.serving.jobs import Job, PlanJob, SurpriseJob
    from iwm.serving.models import Models
    from iwm.serving.plan import Planned
    from iwm.serving.surprise import Surprises

logger = logging.getLogger("iwm.serving")

NOT_FINITE = "z_cls: expected a latent of this model; from this one it predicts no finite numbers"
CALLS = (
    *("encode", "predict", "rollout", "encode_dual", "plan", "surprise"),
    *("reconstruct", "dream", "imagine", "intention"),
)


class Runtime:
    """The models and everything that requests wait for.

    A request takes the engine once and keeps it to its end, and work is batched by engine:
    models can be exchanged at any time (:meth:`exchange`), and an old one is released with its
    last request.

    Args:
        config: bounds and switches.
        engine: ``None`` until (or unless) the weights are there.
        streams: engines of both streams by variant, or none.
        dreamer: the generative model beside them, or none.
        imaginer: the world model of states beside them, or none.
    """

    def __init__(
        self,
        config: ServiceConfig,
        engine: Engine | None = None,
        streams: Mapping[str, Engine] | None = None,
        dreamer: Dreamer | None = None,
        imaginer: Imaginer | None = None,
    ) -> None:
        self.config = config
        self.models: Models | None = None
        if engine is not None:
            from iwm.serving.models import Models

            variant = config.model_variant or engine.variant
            self.models = Models(engine, variant, streams or {}, dreamer, imaginer)
        self.reason = "no model folder is set (IWM_MODEL_PATH)"
        self.device = str(engine.device) if engine else config.device
        self.admission = Admission(config.limits)
        self.metrics = Metrics(CALLS)
        self._decoding = 0
        self.batcher: Batcher[Any, Any] = Batcher(
            self._compute,
            config.limits.max_batch,
            coming=lambda: self._decoding,
            observe=self.metrics.batches.observe,
            patience_s=config.limits.timeout_s,
        )
        # A search takes as long as a hundred predictions: it has a thread of its own, so that
        # those who encode meanwhile need not wait for its end.
        self.planner: Batcher[PlanJob, Planned] = Batcher(_plan, 1, "iwm-plan")
        # A dream, too: frame by frame, each from the one before.
        self.dreams: Batcher[Callable[[], Any], Any] = Batcher(_each, 1, "iwm-dream")
        # Futures take milliseconds; behind a dream they would wait for a second.
        self.futures: Batcher[Callable[[], Any], Any] = Batcher(_each, 1, "iwm-imagine")
        self.board = Board()
        # Decoding releases the GIL; two threads keep ahead of the model on small machines.
        self.decoders = ThreadPoolExecutor(2, thread_name_prefix="iwm-decode")
        self.started = time.monotonic()

    def load(self) -> None:
        """Load the models; what cannot be loaded leaves the service up, saying why.

        Raises:
            ConfigError: the device does not exist, or a precision is refused.
        """
        from iwm.serving.device import choose_device
        from iwm.serving.models import load_models

        self.device = str(choose_device(self.config.device))
        if self.config.model_path is None:
            return
        try:
            self.models = load_models(self.config)
        except ConfigError:
            raise
        except IwmError as error:
            self.reason = str(error)
            logger.error("model not loaded: %s", error)
            return
        import torch

        # A thread learns how many torch may use when it first asks: now, and not while another
        # computes on fewer.
        for queue in (self.batcher, self.planner, self.dreams, self.futures):
            queue.begin(torch.get_num_threads)

    def exchange(self, models: Models) -> None:
        """Let other models answer from now on. Any thread may call it."""
        self.models = models
        self.metrics.reloads += 1

    @property
    def engine(self) -> Engine | None:
        """The engine that answers now."""
        return self.models.main if self.models else None

    @property
    def variant(self) -> str:
        """Name of the model variant in answers."""
        return self.models.variant if self.models else self.config.model_variant or "core"

    def ready(self) -> Models:
        """The models that answer now; hold on to them for the whole request.

        Raises:
            RequestError: 503, no model is loaded.
        """
        if self.models is None:
            raise RequestError(503, f"model not loaded: {self.reason}")
        return self.models

    async def decode(self, engine: Engine | Codec, data: bytes, field: str = "image") -> Any:
        """Pixels at the engine's size.

        Raises:
            RequestError: 422 with the reason.
        """
        prepare, limit = engine.preprocess.decode, self.config.limits.max_pixels
        loop = asyncio.get_running_loop()
        self._decoding += 1
        try:
            return await loop.run_in_executor(self.decoders, prepare, data, limit)
        except DataError as error:
            raise RequestError(422, f"{field}: {error}") from None
        finally:
            self._decoding -= 1

    async def encode(self, engine: Engine, pixels: Any) -> tuple[Floats, Floats]:
        """``z_cls [D]`` and ``z_patches [N, D]`` of pixels."""
        z_cls, z_patches = await self.batcher.submit((engine, "encode"), pixels)
        return z_cls, z_patches

    async def see(self, engine: Engine, data: bytes, field: str = "image") -> tuple[Floats, Floats]:
        """``z_cls [D]`` and ``z_patches [N, D]`` of an image's bytes.

        An image that is alone is decoded in the model's own thread: there is nothing that could be
        computed meanwhile, and every change of threads takes its time.

        Raises:
            RequestError: 422 with the reason.
        """
        if self.admission.pending > 1:
            return await self.encode(engine, await self.decode(engine, data, field))
        found = await self.batcher.submit((engine, "encode"), data)
        if isinstance(found, DataError):
            raise RequestError(422, f"{field}: {found}")
        z_cls, z_patches = found
        return z_cls, z_patches

    async def roll_out(self, engine: Engine, job: Job) -> tuple[Any, ...]:
        """``z_cls [K, D]``, ``z_patches [K, N, D]``, ``mrr [K]``, ``uncertainty [K]``."""
        out = tuple(await self.batcher.submit((engine, "rollout", *job.shape), job))
        if out[0] is None:
            raise RequestError(422, NOT_FINITE)
        return out

    async def surprise(self, engine: Engine, job: SurpriseJob) -> Surprises:
        """Of one transition; every array has one row."""
        found: Surprises = await self.batcher.submit((engine, "surprise", *job.shape), job)
        if not np.isfinite(found.value).all():
            raise RequestError(422, NOT_FINITE)
        return found

    async def plan(self, job: PlanJob) -> Planned:
        """Search; whoever stops waiting stops the search.

        Raises:
            RequestError: 422, the model predicts no finite numbers from there.
        """
        try:
            return await self.planner.submit(None, job)
        except ModelError:
            raise RequestError(422, NOT_FINITE) from None
        finally:
            job.stop.set()

    async def reconstruct(self, codec: Codec, pixels: Any) -> Reconstruction:
        """Pixels through the tokens and back."""
        found: Reconstruction = await self.batcher.submit((codec, "reconstruct"), pixels)
        return found

    async def dream(self, work: Callable[[], Any]) -> Any:
        """What ``work`` returns, once those who asked before are served."""
        return await self.dreams.submit(None, work)

    async def imagine(self, work: Callable[[], Any]) -> Any:
        """What ``work`` returns, once those who asked before are served."""
        return await self.futures.submit(None, work)

    @property
    def waiting(self) -> int:
        """Jobs in all queues."""
        queues = (self.batcher, self.planner, self.dreams, self.futures)
        return sum(queue.waiting for queue in queues)

    def _compute(self, key: Hashable, items: Sequence[Any]) -> Sequence[Any]:
        """One batch, in the model's thread. Items of a key have equal shapes."""
        assert isinstance(key, tuple)
        if key[1] == "reconstruct":
            codec: Codec = key[0]
            return codec.reconstruct(np.stack(items))
        engine: Engine = key[0]
        if key[1] == "encode":
            return _encode(engine, items, self.config.limits.max_pixels)
        if key[1] == "surprise":
            return _surprise(engine, items)
        return _roll_out(engine, items)

    def close(self) -> None:
        """Stop the threads."""
        self.batcher.close()
        self.planner.close()
        self.dreams.close()
        self.futures.close()
        self.decoders.shutdown(wait=True, cancel_futures=True)


def _encode(engine: Engine, items: Sequence[Any], max_pixels: int) -> list[Any]:
    """Of pixels, or of bytes that are decoded here; a ``DataError`` for what is no image."""
    pixels, wrong = [], {}
    for place, item in enumerate(items):
        try:
            decoded = not isinstance(item, bytes)
            pixels.append(item if decoded else engine.preprocess.decode(item, max_pixels))
        except DataError as error:
            wrong[place] = error
    if not pixels:
        return list(wrong.values())
    latents = engine.encode(_joined(pixels))
    rows = zip(latents.z_cls, latents.z_patches, strict=True)
    return [wrong[place] if place in wrong else next(rows) for place in range(len(items))]


def _roll_out(engine: Engine, jobs: Sequence[Job]) -> list[tuple[Any, ...]]:
    from iwm.serving.jobs import stacked_history

    patches = [job.z_patches for job in jobs if job.z_patches is not None]
    out = engine.rollout(
        _joined([job.z_cls for job in jobs]),
        _joined([job.actions for job in jobs]),
        _joined(patches) if patches else None,
        stacked_history(jobs),
    )
    # Asked of all at once; a prediction that is not finite is none.
    finite = np.asarray(np.isfinite(out.z_cls).all(axis=(1, 2)))
    latents = [row if sound else None for row, sound in zip(out.z_cls, finite, strict=True)]
    nothing = [None] * len(jobs)
    others = (out.z_patches, out.mrr, out.uncertainty)
    return list(
        zip(latents, *(nothing if other is None else other for other in others), strict=True)
    )


def _joined(rows: Sequence[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """Stacked arrays of one shape; for short ones ``np.stack`` takes nearly three times as long."""
    return np.concatenate(rows).reshape(len(rows), *rows[0].shape)


def _surprise(engine: Engine, jobs: Sequence[SurpriseJob]) -> list[Surprises]:
    import dataclasses

    from iwm.serving.jobs import stacked_history

    first = jobs[0]
    found = engine.surprise(
        np.stack([job.step.z_cls for job in jobs]),
        np.stack([job.step.actions[0] for job in jobs]),
        np.stack([job.came for job in jobs]),
        first.among,
        None if first.claimed is None else np.array([job.claimed for job in jobs]),
        stacked_history([job.step for job in jobs]),
    )
    return [dataclasses.replace(found, value=found.value[i : i + 1]) for i in range(len(jobs))]


def _plan(_: Hashable, jobs: Sequence[PlanJob]) -> list[Planned]:
    return [job.engine.plan(job.search) for job in jobs]


def _each(_: Hashable, works: Sequence[Callable[[], Any]]) -> list[Any]:
    return [work() for work in works]

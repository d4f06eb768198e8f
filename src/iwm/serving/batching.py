"""Adaptive batching: compute at once when idle, together when busy.

An idle model starts on the first request without waiting for company. While it works,
requests queue; when it is free again it takes as many as fit in one batch. Batches so
grow with the load by themselves, and a lone client pays nothing for them.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(slots=True)
class _Job(Generic[Item, Result]):
    key: Hashable
    item: Item
    future: asyncio.Future[Result]


class Batcher(Generic[Item, Result]):
    """Runs ``work(key, items)`` in one thread, over items that share a key.

    Args:
        work: computes a batch; returns one result an item, in order. Runs in a thread.
        max_batch: most items of one call.
        name: of the thread.

    Belongs to one event loop. Order is first come, first served by the oldest job;
    younger jobs of the same key ride along. A job whose waiter was cancelled (its client
    hung up) is dropped before it is computed.
    """

    def __init__(
        self,
        work: Callable[[Hashable, Sequence[Item]], Sequence[Result]],
        max_batch: int,
        name: str = "iwm-model",
    ) -> None:
        self._work = work
        self._max_batch = max_batch
        self._queue: deque[_Job[Item, Result]] = deque()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._runner: asyncio.Task[None] | None = None

    @property
    def waiting(self) -> int:
        """Jobs in the queue, those in work not counted."""
        return len(self._queue)

    async def submit(self, key: Hashable, item: Item) -> Result:
        """Queue ``item`` and wait for its result.

        Raises:
            Exception: whatever ``work`` raised for the batch that the item was in.
        """
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._queue.append(_Job(key, item, future))
        if self._runner is None or self._runner.done():
            self._runner = asyncio.create_task(self._run())
        return await future

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while jobs := self._take():
            items = [job.item for job in jobs]
            try:
                results = await loop.run_in_executor(self._pool, self._work, jobs[0].key, items)
            except Exception as error:
                for job in jobs:
                    if not job.future.done():
                        job.future.set_exception(error)
                continue
            for job, result in zip(jobs, results, strict=True):
                if not job.future.done():
                    job.future.set_result(result)

    def _take(self) -> list[_Job[Item, Result]]:
        """The next batch: the oldest live job, and those of its key, up to the bound."""
        taken: list[_Job[Item, Result]] = []
        left: deque[_Job[Item, Result]] = deque()
        for job in self._queue:
            if job.future.done():
                continue
            if len(taken) < self._max_batch and (not taken or job.key == taken[0].key):
                taken.append(job)
            else:
                left.append(job)
        self._queue = left
        return taken

    def close(self) -> None:
        """Stop after the batch in work; whoever still waits is cancelled."""
        for job in self._queue:
            job.future.cancel()
        self._queue.clear()
        self._pool.shutdown(wait=True, cancel_futures=True)

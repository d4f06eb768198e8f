"""Adaptive batching: compute at once when alone, together when in company.

While the model works, requests queue; when it is free again it takes as many as fit in one
batch. An idle model starts on a lone client's request without waiting for company. Clients that
were just answered together come back one by one, though: the first of them would start a batch
of one, and the others would wait for it. So for a moment the model waits for as many as there
just were, as long as they keep coming. A lone client is a crowd of one: it never waits. Where
company does not pay, the batches stay small (:mod:`iwm.serving.gains`). Who has waited for so long
that the answer would come too late is told so at once: nothing is computed for nobody.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

from iwm.serving.gains import Gains

Item = TypeVar("Item")
Result = TypeVar("Result")

LONGEST_WAIT_S = 0.025
"""Company is waited for no longer than this, nor longer than the last batch took."""
PAUSE_S = 0.001
"""If nobody comes for this long, or the share below of the last batch's time, nobody will."""
PAUSE_SHARE = 0.15
LONGEST_PAUSE_S = 0.005


class Overdue(Exception):
    """The batch that an item would be in is expected to end when nobody waits for it any more."""


@dataclass(slots=True)
class _Job(Generic[Item, Result]):
    key: Hashable
    item: Item
    future: asyncio.Future[Result]
    submitted: float


@dataclass(frozen=True, slots=True)
class _Crowd:
    """What a batch tells of the next one."""

    key: int
    """Hash of its key: the key itself may hold a model, which must not be kept."""
    size: int
    """Jobs in it, and those of its key that waited when it ended."""
    took_s: float
    ended: float


class Batcher(Generic[Item, Result]):
    """Runs ``work(key, items)`` in one thread, over items that share a key.

    Args:
        work: computes a batch; returns one result an item, in order. Runs in a thread.
        max_batch: most items of one call.
        name: of the thread.
        coming: how many items are being prepared and will be submitted in a moment.
        observe: called with the size of every batch.
        patience_s: how long a job's answer is waited for.

    Belongs to one event loop. Order is first come, first served by the oldest job;
    younger jobs of the same key ride along. A job whose waiter was cancelled (its client
    hung up) is dropped before it is computed.
    """

    def __init__(
        self,
        work: Callable[[Hashable, Sequence[Item]], Sequence[Result]],
        max_batch: int,
        name: str = "iwm-model",
        *,
        coming: Callable[[], int] = lambda: 0,
        observe: Callable[[int], None] = lambda _: None,
        patience_s: float = math.inf,
    ) -> None:
        self._work = work
        self._max_batch = max_batch
        self._patience_s = patience_s
        self._coming, self._observe = coming, observe
        self._queue: deque[_Job[Item, Result]] = deque()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._runner: asyncio.Task[None] | None = None
        self._crowd: _Crowd | None = None
        self._gains = Gains()
        self._wanted = 0
        self._gathered: asyncio.Future[None] | None = None

    @property
    def waiting(self) -> int:
        """Jobs in the queue, those in work not counted."""
        return len(self._queue)

    def begin(self, work: Callable[[], object]) -> None:
        """Start the thread, with this to do first, and wait for it."""
        self._pool.submit(work).result()

    async def submit(self, key: Hashable, item: Item) -> Result:
        """Queue ``item`` and wait for its result.

        Raises:
            Overdue: it has waited, and its answer is expected after the patience ends.
            Exception: whatever ``work`` raised for the batch that the item was in.
        """
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._queue.append(_Job(key, item, future, time.perf_counter()))
        if self._runner is None or self._runner.done():
            self._runner = asyncio.create_task(self._run())
        elif self._gathered is not None and len(self._queue) >= self._wanted:
            _release(self._gathered)
        return await future

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while self._queue:
            await self._gather()
            if not (jobs := self._take()):
                continue
            items, started = [job.item for job in jobs], time.perf_counter()
            self._observe(len(items))
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
            self._remember(jobs[0].key, len(jobs), started)
            # Nobody can come back before the answers are out: one turn of the loop for those who
            # wait for them, one for what they write.
            await asyncio.sleep(0)
            await asyncio.sleep(0)

    def _remember(self, key: Hashable, count: int, started: float) -> None:
        ended = time.perf_counter()
        self._gains.observe(hash(key), count, ended - started)
        count += sum(job.key == key for job in self._queue)
        self._crowd = _Crowd(hash(key), min(count, self._max_batch), ended - started, ended)

    async def _gather(self) -> None:
        """Wait for those who will come back, as long as they keep coming."""
        crowd, key = self._crowd, self._queue[0].key
        now = time.perf_counter()
        if crowd is None or crowd.key != hash(key):
            return
        if now - crowd.ended > crowd.took_s + LONGEST_WAIT_S:
            return  # that was long ago: nobody is on the way back
        until = now + min(crowd.took_s, LONGEST_WAIT_S)
        pause = min(max(PAUSE_S, PAUSE_SHARE * crowd.took_s), LONGEST_PAUSE_S)
        loop = asyncio.get_running_loop()
        self._wanted = self._gains.limit(crowd.key, crowd.size)
        while (count := len(self._queue)) < self._wanted and now < until:
            if any(job.key != key for job in self._queue):
                return  # who wants something else need not wait for others' company
            self._gathered = loop.create_future()
            timer = loop.call_later(pause, _release, self._gathered)
            await self._gathered
            timer.cancel()
            self._gathered = None
            if len(self._queue) == count and not self._coming():
                return
            now = time.perf_counter()

    def _take(self) -> list[_Job[Item, Result]]:
        """The next batch: the oldest live job, and those of its key, up to the bound."""
        while live := [job for job in self._queue if not job.future.done()]:
            key = live[0].key
            same = [job for job in live if job.key == key][: self._max_batch]
            taken = same[: self._gains.limit(hash(key), len(same))]
            if late := self._late(taken):
                for job in late:
                    job.future.set_exception(Overdue())
                continue
            gone = {id(job) for job in taken}
            self._queue = deque(job for job in live if id(job) not in gone)
            return taken
        self._queue.clear()
        return []

    def _late(self, taken: Sequence[_Job[Item, Result]]) -> list[_Job[Item, Result]]:
        """Those whose answers would come too late in this batch.

        Only who has waited for half of the time is given up: the estimate may be wrong, and a
        model that nobody asks any more would never prove it so.
        """
        ends = time.perf_counter() + self._gains.expected(hash(taken[0].key), len(taken))
        return [
            job
            for job in taken
            if ends - job.submitted > self._patience_s
            and time.perf_counter() - job.submitted > self._patience_s / 2
        ]

    def close(self) -> None:
        """Stop after the batch in work; whoever still waits is cancelled."""
        for job in self._queue:
            job.future.cancel()
        self._queue.clear()
        self._pool.shutdown(wait=True, cancel_futures=True)


def _release(gathered: asyncio.Future[None]) -> None:
    if not gathered.done():
        gathered.set_result(None)

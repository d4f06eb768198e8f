"""Where per-file and per-frame work runs: one shape, four places.

Everything that spreads work is handed a :class:`concurrent.futures.Executor` and
does not know whether it is this process, threads, a pool of processes or a Dask
cluster. Work handed to it must be picklable: module-level functions, plain values.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any, ParamSpec, Protocol, TypeVar

from iwm.gameplay.cluster import DaskExecutor, dask_executor, scheduler_address
from iwm.gameplay.config import Where

P = ParamSpec("P")
T = TypeVar("T")

_PR_SET_PDEATHSIG = 1  # prctl(2)


class SerialExecutor(Executor):
    """Runs every task at once in the calling thread: for debugging and for tests."""

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run ``fn`` now; the future returned is done."""
        future: Future[T] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


def _end_with_children(number: int, _: object) -> None:
    """End at once, and with it the programs this worker started (a game's engine)."""
    for children in Path("/proc/self/task").glob("*/children"):
        for child in children.read_text().split():
            with suppress(ProcessLookupError):
                os.kill(int(child), signal.SIGKILL)
    os._exit(128 + number)


def end_with_parent(parent: int) -> None:
    """Have the kernel send this process SIGTERM when its parent ends (on Linux).

    Args:
        parent: the process id that the parent said was its own.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it was gone before we asked
            os.kill(os.getpid(), signal.SIGTERM)


def _start_worker(parent: int, initializer: Callable[..., None] | None, *args: Any) -> None:
    """Make a worker end with its parent (a killed parent cannot tell it to), then set it up."""
    if sys.platform == "linux":
        signal.signal(signal.SIGTERM, _end_with_children)
    end_with_parent(parent)
    if initializer is not None:
        initializer(*args)


def process_pool(
    workers: int, initializer: Callable[..., None] | None = None, initargs: tuple[Any, ...] = ()
) -> ProcessPoolExecutor:
    """A pool of freshly started processes.

    ``spawn`` and not ``fork``: a forked child inherits locked locks of the parent's
    threads (torch, Arrow and codecs all run some) and hangs once in a while.
    """
    return ProcessPoolExecutor(
        workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_worker,
        initargs=(os.getpid(), initializer, *initargs),
    )


class Spreading(Protocol):
    """A configuration that says where its work runs."""

    @property
    def executor(self) -> Where:
        """Which of the four places."""

    @property
    def workers(self) -> int:
        """Threads or processes; a Dask cluster has those that it has."""

    @property
    def dask_address(self) -> str | None:
        """Of the scheduler; ``None``: what Dask's own configuration names."""


def make_executor(cfg: Spreading) -> AbstractContextManager[Executor]:
    """The executor that the configuration names, to be used in a ``with`` block.

    Args:
        cfg: the workers of a Dask cluster need ``iwm`` and the same path to ``data/``.

    Raises:
        ConfigError: ``executor: dask`` without an address; or nobody answers there, or no
            worker has come (the latter two on entering the block).
    """
    match cfg.executor:
        case "serial":
            return SerialExecutor()
        case "threads":
            return ThreadPoolExecutor(cfg.workers, thread_name_prefix="iwm-work")
        case "processes":
            return process_pool(cfg.workers)
        case "dask":
            return dask_executor(scheduler_address(cfg.dask_address))


def places(executor: Executor, cfg: Spreading) -> int:
    """How many tasks run at once: to keep all of them busy, and no more waiting than that."""
    return executor.places() if isinstance(executor, DaskExecutor) else cfg.workers

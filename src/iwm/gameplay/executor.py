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
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from iwm.errors import ConfigError
from iwm.gameplay.config import IngestConfig

P = ParamSpec("P")
T = TypeVar("T")

_PR_SET_PDEATHSIG = 1  # prctl(2)
_DASK_CONNECT_S = 10


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


def _start_worker(parent: int, initializer: Callable[..., None] | None, *args: Any) -> None:
    """Make a worker end with its parent (a killed parent cannot tell it to), then set it up."""
    if sys.platform == "linux":
        signal.signal(signal.SIGTERM, _end_with_children)
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it was gone before we asked
            os.kill(os.getpid(), signal.SIGTERM)
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


@contextmanager
def _dask(address: str) -> Iterator[Executor]:
    from distributed import Client

    try:
        connect: Any = Client  # distributed has no types
        client = connect(address, timeout=_DASK_CONNECT_S, set_as_default=False)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(f"ingest.dask_address: no scheduler at {address}: {reason}") from None
    with client, client.get_executor(pure=False) as executor:
        yield executor


def make_executor(cfg: IngestConfig) -> AbstractContextManager[Executor]:
    """The executor that the configuration names, to be used in a ``with`` block.

    Args:
        cfg: ``executor``, ``workers`` and, for Dask, ``dask_address``. A Dask cluster
            has the workers that it has; they need ``iwm`` and the same ``data/`` path.

    Raises:
        ConfigError: ``executor: dask`` without an address, or nobody answers there
            (the latter on entering the block).
    """
    match cfg.executor:
        case "serial":
            return SerialExecutor()
        case "threads":
            return ThreadPoolExecutor(cfg.workers, thread_name_prefix="iwm-ingest")
        case "processes":
            return process_pool(cfg.workers)
        case "dask":
            if not cfg.dask_address:
                raise ConfigError(
                    "ingest.dask_address: needed by executor: dask, e.g. tcp://127.0.0.1:8786"
                )
            return _dask(cfg.dask_address)

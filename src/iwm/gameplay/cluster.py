"""A Dask cluster as an executor: its loss is one line, within a bounded time.

Dask notices a peer that is gone without a word (a cut link, a machine without power) by TCP's
keepalive, ``distributed.comm.timeouts.tcp``, 30 s unless configured. A lost worker's tasks then go
to the others. What remains is held here: a scheduler that is lost, and a cluster whose last worker
is gone, in which tasks would wait for ever.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Executor, Future, InvalidStateError
from concurrent.futures import wait as wait_for
from contextlib import contextmanager, suppress
from typing import Any, ParamSpec, TypeVar

from iwm.errors import ClusterError, ConfigError

P = ParamSpec("P")
T = TypeVar("T")

_CONNECT_S = 10
_NO_WORKERS_S = 60
"""So long a cluster may have no worker: they start again after a cut."""
_LOOK_S = 2.0


def scheduler_address(named: str | None) -> str:
    """The scheduler's address: what the configuration names, else what Dask's own does.

    Dask reads ``DASK_SCHEDULER_ADDRESS``, and ``scheduler-address`` in its files.

    Raises:
        ConfigError: neither names one.
    """
    if named:
        return named
    import dask

    found = dask.config.get("scheduler-address", None)
    if not found:
        raise ConfigError(
            "dask_address: needed by executor: dask, e.g. tcp://127.0.0.1:8786; or set "
            "DASK_SCHEDULER_ADDRESS"
        )
    return str(found)


def _quieten() -> None:
    """Keep the client's own messages out; what they say is in the errors raised here."""
    for name in list(logging.root.manager.loggerDict):
        if name.partition(".")[0] in ("distributed", "tornado"):
            logging.getLogger(name).setLevel(logging.CRITICAL)


@contextmanager
def connected(address: str) -> Iterator[Any]:
    """A Dask client of the scheduler at ``address``, of which there is at least one worker.

    Raises:
        ConfigError: nobody answers there, or no worker has come.
    """
    from distributed import Client

    _quieten()
    try:
        connect: Any = Client  # distributed has no types
        client = connect(address, timeout=_CONNECT_S, set_as_default=False)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(f"dask_address: no scheduler at {address}: {reason}") from None
    try:
        try:
            client.wait_for_workers(1, timeout=_CONNECT_S)
        except TimeoutError:
            raise ConfigError(
                f"dask_address: the scheduler at {address} has no worker; start one on each host: "
                f"dask worker {address}"
            ) from None
        yield client
    finally:
        with suppress(OSError, TimeoutError):  # it closes in any case, a lost scheduler's too
            client.close(timeout=_CONNECT_S)


class DaskExecutor(Executor):
    """Runs tasks on a Dask cluster.

    Args:
        client: connected, see :func:`connected`; not closed here.
        address: of its scheduler, for messages.

    A future of it raises what its task raised, or :class:`iwm.errors.ClusterError` when the
    cluster cannot finish it.
    """

    def __init__(self, client: Any, address: str) -> None:
        self._client, self._address = client, address
        self._open: set[Future[Any]] = set()
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._watch = threading.Thread(target=self._look_after, daemon=True, name="iwm-dask")
        self._watch.start()

    def places(self) -> int:
        """Tasks that run at once, over all workers; at least 1."""
        threads: dict[str, int] = self._client.nthreads()
        return max(1, sum(threads.values()))

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Have ``fn`` run on some worker.

        Raises:
            ClusterError: the cluster has been lost.
        """
        outer: Future[T] = Future()
        try:
            inner = self._client.submit(fn, *args, pure=False, **kwargs)
        except (RuntimeError, ValueError, OSError):
            raise self._lost() from None
        with self._lock:
            self._open.add(outer)

        def pass_on(done: Any) -> None:
            with self._lock:
                self._open.discard(outer)
            with suppress(InvalidStateError):  # told already that the cluster is lost
                try:
                    outer.set_result(done.result())
                except CancelledError:
                    outer.set_exception(self._lost())
                except BaseException as error:
                    outer.set_exception(self._translated(error))

        def give_up(done: Future[T]) -> None:
            if done.cancelled():
                with self._lock:
                    self._open.discard(outer)
                inner.cancel()

        inner.add_done_callback(pass_on)
        outer.add_done_callback(give_up)
        return outer

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Stop looking after the tasks, once they are done or cancelled."""
        with self._lock:
            left = list(self._open)
        if cancel_futures:
            for future in left:
                future.cancel()
        if wait:
            wait_for(left)
        self._ended.set()

    def _look_after(self) -> None:
        """Fail what waits once there has been no worker for a while."""
        seen = time.monotonic()
        while not self._ended.wait(_LOOK_S):
            with self._lock:
                waiting = list(self._open)
            if not waiting:
                seen = time.monotonic()
                continue
            with suppress(Exception):  # a scheduler that is gone: Dask cancels its futures
                if self._client.nthreads():
                    seen = time.monotonic()
            if time.monotonic() - seen < _NO_WORKERS_S:
                continue
            for future in waiting:
                with suppress(InvalidStateError):
                    future.set_exception(
                        ClusterError(
                            f"the Dask cluster at {self._address} has had no worker for "
                            f"{_NO_WORKERS_S} s; start one on each host (dask worker "
                            f"{self._address}), then run this again"
                        )
                    )

    def _lost(self) -> ClusterError:
        return ClusterError(
            f"lost the Dask scheduler at {self._address} (a cut link, or it ended); run this "
            "again when it is back"
        )

    def _translated(self, error: BaseException) -> BaseException:
        from distributed import KilledWorker
        from distributed.comm.core import CommClosedError

        if isinstance(error, KilledWorker):
            return ClusterError(
                f"workers of the Dask cluster at {self._address} died over and over at the same "
                f"task, the last one {error.last_worker.address} (out of memory, or its decoder "
                "crashed); its log says more"
            )
        return self._lost() if isinstance(error, CommClosedError) else error


@contextmanager
def dask_executor(address: str) -> Iterator[DaskExecutor]:
    """The cluster at ``address``, to be used in a ``with`` block.

    Raises:
        ConfigError: nobody answers there, or no worker has come.
    """
    with connected(address) as client:
        executor = DaskExecutor(client, address)
        try:
            yield executor
        finally:
            executor.shutdown(wait=False, cancel_futures=True)

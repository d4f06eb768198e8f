"""Training on the hosts of a Dask cluster: it starts torchrun on each, and notices a lost one.

The host that runs the stage is the first; every other host lends the place of one of its Dask
workers. A host that is lost ends the training here within the time that Dask takes to notice
(``distributed.comm.timeouts.tcp``), and over there its processes end with their Dask worker.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, NoReturn
from urllib.parse import urlsplit

from pipelines import _torchrun

_CARRIED = ("IWM_", "OMP_", "GLOO_", "NCCL_", "MLFLOW_", "TORCH_", "PYTHONPATH")
"""What the other hosts' environment gets of this one's."""
_LOOK_S = 1.0
_ENDS_S = 40.0
"""Above the 30 s that torchrun grants its processes."""
_TAIL = 20


def lend(
    phase: str, processes: int, nodes: int, head: str, folder: str, environ: Mapping[str, str]
) -> tuple[int, str]:
    """Run in a Dask worker: take part as one host; its exit code and last error line."""
    words = _torchrun.arguments(phase, processes, nodes, head)
    with subprocess.Popen(
        _torchrun.command(words, end_with=os.getpid()),
        cwd=folder,
        env={**os.environ, **environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        assert process.stdout is not None
        tail = deque((line.strip() for line in process.stdout), maxlen=_TAIL)
        code = process.wait()
    stated = [line.removeprefix("error: ") for line in tail if line.startswith("error: ")]
    return code, stated[-1] if stated else (tail[-1] if tail else "no output")


def train_on_cluster(phase: str, processes: int, nodes: int) -> NoReturn:
    """Train on this host and ``nodes - 1`` others; ends the program as the training ended.

    Raises:
        ConfigError: no scheduler, or too few hosts.
        ClusterError: a host was lost.
    """
    from iwm.gameplay.cluster import connected, scheduler_address
    from iwm.training.distributed import address_towards

    address = scheduler_address(None)
    with connected(address) as client:
        own = address_towards(urlsplit(address).hostname or address)
        workers = _one_per_host(client, own)
        head = f"{own}:{_free_port(own)}"
        words = _torchrun.arguments(phase, processes, nodes, head)
        environ = {key: value for key, value in os.environ.items() if key.startswith(_CARRIED)}
        here = (phase, processes, nodes, head, os.getcwd(), environ)  # noqa: PTH109 (a plain word)
        _enough(address, own, workers, nodes)
        local = subprocess.Popen(_torchrun.command(words, end_with=os.getpid()))
        others: dict[str, Any] = {}
        with _passing_on(local):
            try:
                for worker in workers[: nodes - 1]:
                    others[worker] = client.submit(
                        lend, *here, workers=[worker], allow_other_workers=False, pure=False
                    )
                sys.exit(_watch(client, local, others))
            finally:
                _end(local)
                with suppress(OSError, TimeoutError, RuntimeError):
                    client.cancel(list(others.values()))


def _one_per_host(client: Any, own: str) -> list[str]:
    """A worker of each host but this one, in order of their addresses."""
    found: dict[str, str] = {}
    for worker in sorted(client.nthreads()):
        found.setdefault(str(urlsplit(worker).hostname), worker)
    return [worker for host, worker in found.items() if host not in (own, "127.0.0.1")]


def _enough(address: str, own: str, workers: list[str], nodes: int) -> None:
    from iwm.errors import ConfigError

    if len(workers) < nodes - 1:
        raise ConfigError(
            f"--nodes {nodes}: the Dask cluster at {address} has workers on {len(workers)} hosts "
            f"besides {own}; start `dask worker {address}` on more, or name fewer"
        )


def _free_port(host: str) -> int:
    with socket.socket() as listener:
        listener.bind((host, 0))
        return int(listener.getsockname()[1])


def _watch(client: Any, local: subprocess.Popen[bytes], others: Mapping[str, Any]) -> int:
    """Wait for the training's end; its exit code.

    Raises:
        ClusterError: a host, or the scheduler, was lost; or one failed and said why.
    """
    from iwm.errors import ClusterError

    while True:
        with suppress(subprocess.TimeoutExpired):
            code = local.wait(_LOOK_S)
            if code == ClusterError.exit_code:  # lost another process: perhaps that says more
                _say_why(others)
            return code
        try:
            present = client.nthreads()
        except (OSError, RuntimeError, ValueError):
            raise ClusterError(
                "lost the Dask scheduler; run it again to go on from the last checkpoint"
            ) from None
        for worker, future in others.items():
            if worker not in present:
                raise ClusterError(
                    f"lost the host {urlsplit(worker).hostname} (a cut link, or its Dask worker "
                    "ended); run it again to go on from the last checkpoint"
                )
            if future.done() and (code := _outcome(future)[0]):
                # The processes here end for the same reason.
                with suppress(subprocess.TimeoutExpired):
                    local.wait(_ENDS_S)
                _say_why(others)
                return code


def _say_why(others: Mapping[str, Any]) -> None:
    """Print what the other hosts said of their own failures."""
    from iwm.errors import ClusterError

    for worker, future in others.items():
        code, said = _outcome(future)
        if code not in (0, ClusterError.exit_code):
            print(f"error: on the host {urlsplit(worker).hostname}: {said}", file=sys.stderr)


def _outcome(future: Any) -> tuple[int, str]:
    from iwm.errors import ClusterError

    try:
        code, said = future.result(timeout=5)
    except TimeoutError:
        return ClusterError.exit_code, "still running"
    except Exception as error:  # whatever kept the task from running there
        return 1, " ".join(str(error).split()) or type(error).__name__
    return code, said


@contextmanager
def _passing_on(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """SIGTERM and Ctrl-C go to torchrun, which lets every process save and end."""

    def handle(*_: object) -> None:
        process.send_signal(signal.SIGTERM)

    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End torchrun and, as they end with it, its processes."""
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(_ENDS_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()

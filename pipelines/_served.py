"""A service of our own, really started on a free port and surely stopped."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from iwm.errors import ServiceError
from pipelines._stage import LEASH

HOST = "127.0.0.1"
GRACE_S = 10.0
"""Seconds from the request to end until it is enforced."""


@dataclass(frozen=True)
class Served:
    """A running service: its address, its process group, seconds until it was ready.

    It ends with the process that asked for it, by whatever death.
    """

    url: str
    pid: int
    ready_s: float


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def stop(process: subprocess.Popen[bytes], grace_s: float = 2 * GRACE_S) -> None:
    """End a process group: asked first, killed after ``grace_s``."""
    if process.stdin is not None:
        process.stdin.close()
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(grace_s)
    # The leader may be gone and a worker not.
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@contextmanager
def served(
    target: str,
    folder: Path,
    *,
    environ: Mapping[str, str] | None = None,
    wait_s: float = 300.0,
) -> Iterator[Served]:
    """Run ``bentoml serve TARGET`` in ``folder`` until the block ends.

    Args:
        target: a Bento's tag, or ``module:service``.
        folder: working folder, where ``serve.log`` is written.
        environ: variables to add; the caller's own ``IWM_*`` are not passed on.
        wait_s: seconds until ``/health`` must answer.

    Raises:
        ServiceError: it ended or did not answer; the last line of its log is quoted.
    """
    from iwm.client import SyncIWMClient

    port = free_port()
    kept = {name: value for name, value in os.environ.items() if not name.startswith("IWM_")}
    log = folder / "serve.log"
    leash = [sys.executable, "-I", "-S", os.fspath(LEASH), str(GRACE_S)]
    address = ["--host", HOST, "--port", str(port)]
    started = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*leash, sys.executable, "-m", "bentoml", "serve", target, *address],
            cwd=folder,
            env={**kept, **(environ or {})},
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        url = f"http://{HOST}:{port}"
        with SyncIWMClient(url, timeout=5.0) as client:
            while client.health().get("status") == "error":
                if process.poll() is not None or time.monotonic() - started > wait_s:
                    lines = log.read_text(errors="replace").strip().splitlines()
                    raise ServiceError(
                        f"{target}: the service did not start: {lines[-1] if lines else 'no log'}"
                    )
                time.sleep(0.1)
        yield Served(url, process.pid, time.monotonic() - started)
    finally:
        stop(process)

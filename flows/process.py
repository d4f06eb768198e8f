"""Commands under a flow run: output streamed to its log, nothing left behind.

Each command runs in a session of its own below a leash (:mod:`pipelines._leash`). A flow run
holds its leashes in a :class:`Supervisor`; leaving the flow, by whatever exception, lets go
of all of them, and the kernel does the same should the flow's process be killed.
"""

from __future__ import annotations

import contextlib
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from flows.observe import named
from iwm.errors import ClusterError, IwmError
from iwm.logs import plain
from pipelines._stage import LEASH, QUIET_ENVIRONMENT

GRACE_S = 15.0
"""Seconds between SIGTERM and SIGKILL; below the 30 s a Prefect worker grants a flow run."""

_RECORD_EVERY_S = 0.1
_LINES_PER_RECORD = 200
_LINES_AHEAD = 2000
_LINE_LIMIT = 8192
_TAIL = 60

_LOCK_BUSY = re.compile(r"Unable to acquire lock|is busy, it is being blocked by")
_DVC_EXIT = re.compile(r"failed to run: [\s\S]*?, exited with (-?\d+)")
_REASON = "error: "
_DVC_FRAME = ("Running stage ", "> ", "ERROR: failed to reproduce", "Verifying ", "Updating lock")


class StageFailed(IwmError):
    """A stage ended with an error that running it again would not mend; a gate's verdict too."""


class InfrastructureError(IwmError):
    """A stage was killed, lost a host, or found DVC's lock taken: worth another attempt."""


class Stopped(IwmError):
    """The flow run ended while the command ran."""


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code (128 + signal) and its last lines."""

    code: int
    tail: tuple[str, ...]


def judge(name: str, ended: Ended) -> IwmError | None:
    """What an ended ``dvc repro`` means: ``None`` for success, else the error to raise."""
    if ended.code == 0:
        return None
    text = "\n".join(ended.tail)
    inner = _DVC_EXIT.findall(text)
    code = int(inner[-1]) if inner else ended.code
    number = -code if code < 0 else code - 128
    if number in {item.value for item in signal.Signals}:
        return InfrastructureError(f"{name} was ended by {signal.Signals(number).name}")
    if _LOCK_BUSY.search(text):
        return InfrastructureError(f"{name}: another DVC process holds the lock")
    if code == ClusterError.exit_code:
        return InfrastructureError(f"{name}: {_reason(ended.tail)}")
    return StageFailed(f"{name} failed: {_reason(ended.tail)}")


def _reason(tail: Sequence[str]) -> str:
    """The stage's own error line, else the last thing that it, or DVC, said."""
    lines = [line.strip() for line in tail if line.strip()]
    stated = [line.removeprefix(_REASON) for line in lines if line.startswith(_REASON)]
    own = [line for line in lines if not line.startswith(_DVC_FRAME)]
    return (stated or own or lines or ["no output"])[-1]


class Supervisor:
    """Holds the leashes of one flow run."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[str]] = set()
        self._closed = False

    def run(
        self,
        command: Sequence[str],
        log: Callable[[str], object],
        *,
        cwd: Path | None = None,
        environ: Mapping[str, str] | None = None,
        grace_s: float = GRACE_S,
    ) -> Ended:
        """Run ``command`` to its end, each line of its output given to ``log``.

        Lines that come faster than ten records a second are joined, and a command that
        writes faster than the log takes is made to wait, so memory stays bounded however
        long it runs and however much it says. ``environ`` is added to this process's own.

        Raises:
            Stopped: the flow run ended before the command did.
        """
        own = dict(environ or {})
        environment = {**QUIET_ENVIRONMENT, **os.environ, "PYTHONUNBUFFERED": "1", **own}
        with self._lock:
            if self._closed:
                raise Stopped("the flow run has ended")
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(LEASH), str(grace_s), *command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                encoding="utf-8",
                errors="replace",
                cwd=cwd,
                env=environment,
                start_new_session=True,
            )
            self._running.add(process)
        try:
            tail = _pump(process, log)
            code = process.wait()
        finally:
            _let_go(process, grace_s)
            with self._lock:
                self._running.discard(process)
        if self._closed:
            raise Stopped(f"`{' '.join(command)}` was stopped with its flow run")
        return Ended(code, tail)

    def close(self) -> None:
        """Stop everything that runs and refuse what would start; returns when all is gone."""
        with self._lock:
            self._closed = True
            running = list(self._running)
        for process in running:
            _drop(process)
        for process in running:
            _let_go(process, GRACE_S)


def _drop(process: subprocess.Popen[str]) -> None:
    if process.stdin is not None:
        with contextlib.suppress(OSError, ValueError):
            process.stdin.close()


def _let_go(process: subprocess.Popen[str], grace_s: float) -> None:
    """Close the leash and wait for its end; kill the group if even the leash hangs."""
    _drop(process)
    try:
        process.wait(timeout=grace_s + 5)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _pump(process: subprocess.Popen[str], log: Callable[[str], object]) -> tuple[str, ...]:
    """Move lines from the pipe to the log until the pipe ends; returns the last of them."""
    assert process.stdout is not None
    lines: queue.Queue[str | None] = queue.Queue(maxsize=_LINES_AHEAD)
    threading.Thread(target=_read, args=(process.stdout, lines), daemon=True).start()
    tail: deque[str] = deque(maxlen=_TAIL)
    line = lines.get()
    while line is not None:
        batch = [line]
        # One record for what has gathered meanwhile.
        while len(batch) < _LINES_PER_RECORD:
            try:
                line = lines.get_nowait()
            except queue.Empty:
                break
            if line is None:
                break
            batch.append(line)
        tail.extend(plain(line) for line in batch)
        log("\n".join(batch))
        if line is not None:
            time.sleep(_RECORD_EVERY_S)
            line = lines.get()
    return tuple(tail)


def _read(stream: IO[str], lines: queue.Queue[str | None]) -> None:
    # Universal newlines also end a line at a carriage return, as progress bars write them.
    try:
        while text := stream.readline(_LINE_LIMIT):
            if text.strip():
                lines.put(text.rstrip())
    except ValueError:  # closed under us
        pass
    finally:
        lines.put(None)


_SUPERVISORS: dict[str, Supervisor] = {}


@contextlib.contextmanager
def supervised(run_id: str) -> Iterator[Supervisor]:
    """The supervisor of one flow run; everything it runs is gone when the block ends."""
    supervisor = _SUPERVISORS[run_id] = Supervisor()
    try:
        with named(run_id):
            yield supervisor
    finally:
        supervisor.close()
        del _SUPERVISORS[run_id]


def supervisor_of(run_id: str) -> Supervisor:
    """The supervisor of the flow run that a task belongs to.

    Raises:
        Stopped: that flow run has ended.
    """
    try:
        return _SUPERVISORS[run_id]
    except KeyError:
        raise Stopped(f"flow run {run_id} has ended") from None

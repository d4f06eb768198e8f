"""Runs one command and ends with it, whatever happens to the process that asked.

Used as a program: ``python -I _leash.py GRACE_S COMMAND...``. Standard input is the leash: a pipe
whose other end the parent holds and never writes to. When the parent closes it, or dies
(``kill -9`` included), the kernel closes the pipe and everything below this process gets
SIGTERM, then SIGKILL after ``GRACE_S`` seconds. SIGTERM to this process does the same; should it
be killed itself, the kernel sends SIGTERM to the command. Descendants count as well when they left
the process group (torchrun puts each of its workers in a session of its own): on Linux this
process adopts orphans, so the process tree below it is complete.

Exit code: the command's; 128 + signal when a signal ended it, as in a shell.
Standard library only: it starts in milliseconds and cannot fail on an import.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_PR_SET_CHILD_SUBREAPER = 36
_POLL_S = 0.05


def _adopt_orphans() -> None:
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _end_with_parent() -> None:
    """In the child, before it becomes the command: end should the leash be killed."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _parents() -> dict[int, int]:
    """Process id -> parent's id, zombies left out; empty where there is no /proc."""
    found: dict[int, int] = {}
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir("/proc"):  # noqa: PTH208 - hot loop, names are all we need
            if not name.isdigit():
                continue
            with contextlib.suppress(OSError), open(f"/proc/{name}/stat", "rb") as file:  # noqa: PTH123
                # pid (name) state ppid ...; the name may hold anything, so cut after it.
                state, parent = file.read().rpartition(b")")[2].split()[:2]
                if state != b"Z":
                    found[int(name)] = int(parent)
    return found


def descendants(root: int) -> list[int]:
    """Every living process below ``root``, parents before children."""
    children: dict[int, list[int]] = {}
    for child, parent in _parents().items():
        children.setdefault(parent, []).append(child)
    found: list[int] = []
    waiting = [root]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += below
    return found


def _signal_all(number: int) -> None:
    """Signal the process group and whatever left it; this process ignores SIGTERM."""
    if number != signal.SIGKILL:
        with contextlib.suppress(OSError):
            os.killpg(0, number)
        return
    for process in descendants(os.getpid()):
        with contextlib.suppress(OSError):
            os.kill(process, number)


def _stop(child: subprocess.Popen[bytes], grace_s: float) -> None:
    """TERM, wait, KILL, until nothing is left below this process."""
    stragglers = set(descendants(os.getpid()))
    _signal_all(signal.SIGTERM)
    for process in stragglers:
        # Those in sessions of their own; a second TERM to the others says the same.
        with contextlib.suppress(OSError):
            if os.getpgid(process) != os.getpgrp():
                os.kill(process, signal.SIGTERM)
    deadline = time.monotonic() + grace_s
    while time.monotonic() < deadline and (child.poll() is None or descendants(os.getpid())):
        time.sleep(_POLL_S)
    while descendants(os.getpid()):
        _signal_all(signal.SIGKILL)
        time.sleep(_POLL_S)
    if child.poll() is None:
        child.kill()


def main(arguments: list[str]) -> int:
    """Run ``arguments[1:]`` on a leash with ``arguments[0]`` seconds of grace."""
    grace_s, command = float(arguments[0]), arguments[1:]
    _adopt_orphans()
    let_go = threading.Event()
    # The child restores what it wants; ignoring here would be inherited, so handle instead.
    signal.signal(signal.SIGTERM, lambda *_: let_go.set())
    signal.signal(signal.SIGINT, lambda *_: None)
    # No other thread runs yet, so code between fork and exec is safe.
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, preexec_fn=_end_with_parent)

    def watch() -> None:
        while os.read(0, 1):  # only ever ends: nobody writes
            pass
        let_go.set()

    threading.Thread(target=watch, daemon=True).start()
    while child.poll() is None and not let_go.is_set():
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(timeout=_POLL_S)
    # Also when the command ended by itself: what it left behind would be an orphan.
    _stop(child, grace_s)
    code = child.wait()
    return 128 - code if code < 0 else code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

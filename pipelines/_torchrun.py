"""``torchrun`` with its errors in one line, and with the addresses of this machine's network.

``python -m pipelines._torchrun [--parent PID] ARGUMENTS OF TORCHRUN``
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from iwm.errors import ClusterError

PORT = 29500
"""Where the first host is met unless a port is named."""
_LOOK_S = 1.0
_REAPED_S = 20.0
"""torchrun sees within a second that a process of its own has ended, unless it is stuck."""
_GRACE_S = 20.0


def arguments(phase: str, processes: int, nodes: int = 1, head: str | None = None) -> list[str]:
    """What torchrun is told so that this host takes part in a training.

    Args:
        phase: an entry under ``train``.
        processes: on this host.
        nodes: number of hosts.
        head: ``HOST[:PORT]`` of the first one; needed when there are several.

    Raises:
        ConfigError: no way to the head.
    """
    program = ["--nproc-per-node", str(processes), "-m", "pipelines.train", phase]
    if head is None:
        return ["--standalone", *program]
    from iwm.training.distributed import address_towards

    host, port = endpoint(head)
    own = address_towards(host)
    # Names of machines often lead to loopback, so both are told instead of guessed by torchrun.
    meeting = f"is_host={int(_is_own(host, own))},read_timeout=60,join_timeout=600"
    return [
        *("--nnodes", str(nodes), "--rdzv-backend", "c10d", "--rdzv-id", f"iwm-{phase}"),
        *("--rdzv-endpoint", f"{host}:{port}", "--rdzv-conf", meeting, "--local-addr", own),
        *program,
    ]


def endpoint(head: str) -> tuple[str, int]:
    """``HOST[:PORT]`` in its parts.

    Raises:
        ConfigError: it is not of that form.
    """
    from iwm.errors import ConfigError

    host, colon, port = head.rpartition(":") if head.count(":") == 1 else (head, "", "")
    if not host or (colon and not port.isdigit()):
        raise ConfigError(f"--head {head!r}: expected HOST:PORT, e.g. 10.0.0.1:{PORT}")
    return host, int(port or PORT)


def _is_own(host: str, own: str) -> bool:
    """Whether ``host`` is this machine: the way there is its own address."""
    import socket

    return own in {place[0] for *_, place in socket.getaddrinfo(host, None)}


def command(of_torchrun: Sequence[str], *, end_with: int | None = None) -> list[str]:
    """The command line of this module; ``end_with``: the caller's process id, to end with it."""
    leash = [] if end_with is None else ["--parent", str(end_with)]
    return [sys.executable, "-m", "pipelines._torchrun", *leash, *of_torchrun]


def main(words: Sequence[str]) -> None:
    """Be torchrun.

    Raises:
        ClusterError: hosts did not meet, lost each other, or a process was killed.
    """
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    parent = None
    if words[:1] == ["--parent"]:
        parent, words = int(words[1]), words[2:]
    threading.Thread(target=_look_after, args=(parent,), daemon=True).start()
    from torch.distributed import DistError, run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous.api import RendezvousError

    # torchrun's own lines are about itself; what happened is said here and by its processes.
    for name in list(logging.root.manager.loggerDict):
        if name.startswith("torch.distributed"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    torchrun: Any = run  # it has no types
    try:
        torchrun.run(torchrun.parse_args(list(words)))
    except ChildFailedError as failed:
        rank, failure = failed.get_first_failure()
        if failure.exitcode > 0:  # it has said why
            sys.exit(failure.exitcode)
        number = signal.Signals(-failure.exitcode)
        print(f"error: process {rank} was ended by {number.name}", file=sys.stderr)
        sys.exit(128 + number)
    except SignalException as asked:
        sys.exit(128 + asked.sigval)
    except (RendezvousError, DistError) as error:
        cause = error.__cause__ or error
        reason = (str(cause).splitlines() or [""])[0] or type(cause).__name__
        raise ClusterError(
            f"torchrun: the hosts do not meet, or one was lost ({reason[:160]}); is the first "
            "one up, and was it started within the last minute?"
        ) from None


def _look_after(parent: int | None) -> None:
    """End this process where torchrun cannot.

    Beyond a cut link it waits for the first host's store without a bound, deaf to signals, and
    sees neither its own processes end nor its parent.
    """
    waiting = 0.0
    while True:
        time.sleep(_LOOK_S)
        if parent is not None and os.getppid() != parent:
            _end(_children())
            os._exit(ClusterError.exit_code)
        ended = [pid for pid in _children() if _is_zombie(pid)]
        waiting = waiting + _LOOK_S if ended else 0.0
        if waiting > _REAPED_S:
            found = os.waitid(os.P_PID, ended[0], os.WEXITED | os.WNOWAIT)
            code = found.si_status if found is not None else 1
            _end(_children())
            os._exit(code if found is not None and found.si_code == os.CLD_EXITED else 128 + code)


def _children() -> list[int]:
    found: list[int] = []
    for path in Path("/proc/self/task").glob("*/children"):
        with suppress(OSError):
            found += [int(word) for word in path.read_text().split()]
    return found


def _is_zombie(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    return False


def _end(processes: Sequence[int]) -> None:
    """Ask them to save and end; after a while, no more asking."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        for pid in processes:
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        deadline = time.monotonic() + _GRACE_S
        while number == signal.SIGTERM and time.monotonic() < deadline:
            if all(_is_zombie(pid) for pid in processes):
                return
            time.sleep(_LOOK_S / 2)


if __name__ == "__main__":
    from iwm import logs
    from iwm.errors import one_line_errors

    with one_line_errors():
        logs.configure("train", sys.argv[-1])
        main(sys.argv[1:])

"""Two hosts on one machine: network namespaces joined by a veth pair, one file system.

A "host" has interfaces, addresses and routes of its own; a cut link loses packets without a
word, as a pulled cable does.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any


def ip(*words: str) -> None:
    """Run iproute2's ``ip``."""
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@dataclass(frozen=True)
class Host:
    """One namespace with one interface."""

    namespace: str
    interface: str
    address: str

    def command(self, *words: str) -> list[str]:
        """``python words`` on this host."""
        return ["ip", "netns", "exec", self.namespace, sys.executable, *words]

    def start(
        self, *words: str, cwd: Path, log: Path, environ: Mapping[str, str]
    ) -> subprocess.Popen[bytes]:
        """Start ``python words`` in a session of its own, its output in a file."""
        with log.open("ab") as out:
            return subprocess.Popen(
                self.command(*words),
                cwd=cwd,
                env={**os.environ, **environ},
                stdout=out,
                stderr=out,
                start_new_session=True,
            )

    def run(
        self, *words: str, cwd: Path, environ: Mapping[str, str], timeout: float = 1000
    ) -> subprocess.CompletedProcess[str]:
        """Run ``python words`` to its end."""
        return subprocess.run(
            self.command(*words),
            cwd=cwd,
            env={**os.environ, **environ},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def link(self, state: str) -> None:
        """``down`` cuts this host off, ``up`` brings it back."""
        ip("-n", self.namespace, "link", "set", self.interface, state)

    def processes(self) -> list[int]:
        """Whatever runs on this host."""
        found = subprocess.run(
            ["ip", "netns", "pids", self.namespace], capture_output=True, text=True, check=False
        )
        return [int(word) for word in found.stdout.split()]


def cannot() -> str | None:
    """Why two hosts cannot be made here; ``None`` where they can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "network namespaces need root on Linux"
    if shutil.which("ip") is None:
        return "network namespaces need iproute2's `ip`"
    name = f"iwm-try-{os.getpid()}"
    try:
        ip("netns", "add", name)
    except subprocess.CalledProcessError as error:
        return f"network namespaces cannot be made here: {error.stderr.strip()}"
    ip("netns", "delete", name)
    return None


@contextmanager
def two_hosts() -> Iterator[tuple[Host, Host]]:
    """Make two joined hosts; what still runs on them at the end is killed."""
    mark = os.getpid() % 100_000
    hosts = tuple(
        Host(f"iwm-{side}-{mark}", f"iwm{side}{mark}", f"10.77.0.{number}")
        for number, side in enumerate("ab", 1)
    )
    one, two = hosts
    try:
        for host in hosts:
            ip("netns", "add", host.namespace)
        ip(
            *("link", "add", one.interface, "netns", one.namespace, "type", "veth"),
            *("peer", "name", two.interface, "netns", two.namespace),
        )
        for host in hosts:
            ip("-n", host.namespace, "address", "add", f"{host.address}/24", "dev", host.interface)
            ip("-n", host.namespace, "link", "set", "lo", "up")
            host.link("up")
        yield one, two
    finally:
        for host in hosts:
            for process in host.processes():
                with suppress(ProcessLookupError):
                    os.kill(process, 9)
            subprocess.run(["ip", "netns", "delete", host.namespace], capture_output=True)


def reads(process: int, name: str) -> bool:
    """Whether a process, or one below it, has a file of this name open."""
    with suppress(OSError):
        for entry in Path(f"/proc/{process}/fd").iterdir():
            with suppress(OSError):
                if entry.readlink().name == name:
                    return True
    children: list[Any] = []
    for task in Path(f"/proc/{process}/task").glob("*/children"):
        with suppress(OSError):
            children += task.read_text().split()
    return any(reads(int(child), name) for child in children)

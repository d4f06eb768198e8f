"""What tests look at from outside a running service."""

from __future__ import annotations

import httpx
import psutil

from pipelines._served import Served


def worker(service: Served) -> psutil.Process:
    """The process that holds the models: the largest of the service's."""
    processes = psutil.Process(service.pid).children(recursive=True)
    return max(processes, key=lambda process: process.memory_info().rss)


def resident(service: Served) -> int:
    """Bytes that the service's processes hold, what they share counted in each."""
    leader = psutil.Process(service.pid)
    return sum(one.memory_info().rss for one in (leader, *leader.children(recursive=True)))


def pending(service: Served) -> int:
    """Requests that the service still holds a place for."""
    lines = httpx.get(f"{service.url}/metrics", timeout=60).text.splitlines()
    (line,) = [line for line in lines if line.startswith("iwm_pending ")]
    return int(float(line.split()[1]))

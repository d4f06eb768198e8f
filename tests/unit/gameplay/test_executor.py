"""One executor shape over four places, Dask with a real scheduler and worker."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from iwm.errors import ClusterError, ConfigError
from iwm.gameplay.cluster import scheduler_address
from iwm.gameplay.config import IngestConfig
from iwm.gameplay.executor import make_executor, places
from pipelines._served import free_port


def square(number: int) -> int:
    return number * number


def fail(number: int) -> int:
    raise ValueError(f"no {number}")


def check(cfg: IngestConfig) -> None:
    with make_executor(cfg) as executor:
        assert list(executor.map(square, range(20))) == [number**2 for number in range(20)]
        with pytest.raises(ValueError, match="no 3"):
            executor.submit(fail, 3).result()


@pytest.mark.parametrize("kind", ["serial", "threads", "processes"])
def test_local(kind: Any) -> None:
    check(IngestConfig(executor=kind, workers=2))


def test_dask_cluster_on_loopback() -> None:
    from distributed import LocalCluster

    cluster: Any = LocalCluster
    with cluster(
        n_workers=1,
        threads_per_worker=1,
        processes=True,
        host="127.0.0.1",
        dashboard_address=None,
    ) as running:
        check(IngestConfig(executor="dask", dask_address=running.scheduler_address))


def test_dask_needs_an_address() -> None:
    with pytest.raises(ConfigError, match="dask_address"):
        make_executor(IngestConfig(executor="dask"))


def test_the_address_may_stand_in_dasks_own_configuration() -> None:
    import dask

    with dask.config.set({"scheduler-address": "tcp://10.0.0.1:8786"}):
        assert scheduler_address(None) == "tcp://10.0.0.1:8786"
        assert scheduler_address("tcp://10.0.0.2:8786") == "tcp://10.0.0.2:8786"


def test_a_scheduler_without_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    from distributed import LocalCluster

    monkeypatch.setattr("iwm.gameplay.cluster._CONNECT_S", 1)
    cluster: Any = LocalCluster
    with cluster(n_workers=0, processes=False, dashboard_address=None) as running:
        cfg = IngestConfig(executor="dask", dask_address=running.scheduler_address)
        with pytest.raises(ConfigError, match="has no worker; start one"), make_executor(cfg):
            pass


def test_the_last_worker_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    from distributed import LocalCluster

    monkeypatch.setattr("iwm.gameplay.cluster._NO_WORKERS_S", 1)
    monkeypatch.setattr("iwm.gameplay.cluster._LOOK_S", 0.1)
    cluster: Any = LocalCluster
    with cluster(n_workers=1, processes=False, dashboard_address=None) as running:
        cfg = IngestConfig(executor="dask", dask_address=running.scheduler_address)
        with make_executor(cfg) as executor:
            assert places(executor, cfg) >= 1
            assert executor.submit(square, 3).result() == 9
            running.scale(0)
            with pytest.raises(ClusterError, match="has had no worker for 1 s"):
                executor.submit(square, 4).result(timeout=60)


def test_the_scheduler_is_lost(tmp_path: Path) -> None:
    port = free_port()
    address = f"tcp://127.0.0.1:{port}"
    words = ["scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard"]
    scheduler = subprocess.Popen([sys.executable, "-m", "dask", *words], stderr=subprocess.DEVNULL)
    words = ["worker", address, "--nthreads", "1", "--no-nanny", "--no-dashboard"]
    worker = subprocess.Popen([sys.executable, "-m", "dask", *words], stderr=subprocess.DEVNULL)
    try:
        cfg = IngestConfig(executor="dask", dask_address=address)
        wait_for_cluster(cfg)
        with make_executor(cfg) as executor:
            waiting = executor.submit(time.sleep, 600)
            time.sleep(0.5)
            scheduler.kill()
            with pytest.raises(ClusterError, match=f"lost the Dask scheduler at {address}"):
                waiting.result(timeout=60)
    finally:
        for process in (scheduler, worker):
            process.kill()
            process.wait()


def wait_for_cluster(cfg: IngestConfig) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            with make_executor(cfg):
                return
        except ConfigError:
            assert time.monotonic() < deadline


def test_nobody_at_the_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("iwm.gameplay.cluster._CONNECT_S", 1)
    with (
        pytest.raises(ConfigError, match=r"no scheduler at tcp://127\.0\.0\.1:9"),
        make_executor(IngestConfig(executor="dask", dask_address="tcp://127.0.0.1:9")),
    ):
        pass


PARENT = """
import os, subprocess, sys, time
from pathlib import Path
from iwm.gameplay.executor import process_pool
engines = []
def work():
    engines.append(subprocess.Popen(["sleep", "600"]))
    return f"{os.getpid()} {engines[0].pid}"
if __name__ == "__main__":
    with process_pool(1) as pool:
        Path(sys.argv[1]).write_text(pool.submit(work).result())
        time.sleep(60)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
def test_workers_and_their_programs_end_with_a_killed_parent(tmp_path: Path) -> None:
    (tmp_path / "parent.py").write_text(PARENT)
    told = tmp_path / "pids"
    parent = subprocess.Popen([sys.executable, str(tmp_path / "parent.py"), str(told)])
    deadline = time.monotonic() + 60
    while not (told.exists() and told.read_text()) and time.monotonic() < deadline:
        time.sleep(0.02)
    pids = [int(pid) for pid in told.read_text().split()]
    assert all(_runs(pid) for pid in pids)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    while any(_runs(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(_runs(pid) for pid in pids)


def _runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"

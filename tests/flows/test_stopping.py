"""`make prefect-up`, `make mlflow-ui`, `make down`: all on loopback, and nothing is left."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from flows.services import RUN, Service


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def is_open(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def wait_for(condition: Callable[[], object], patience_s: float = 120.0) -> None:
    deadline = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def ours(mark: str) -> list[psutil.Process]:
    """The processes that were started with ``mark`` in their environment, but this one's."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.pid != os.getpid() and process.environ().get("IWM_TEST_MARK") == mark:
                found.append(process)
    return found


def assert_on_loopback(processes: list[psutil.Process], port: int) -> None:
    """Whatever they listen on, they listen on loopback alone."""
    ports = set()
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            for connection in process.net_connections("inet"):
                if connection.status == psutil.CONN_LISTEN:
                    assert connection.laddr.ip in ("127.0.0.1", "::1"), process.cmdline()
                    ports.add(connection.laddr.port)
    assert port in ports


def services(*arguments: str, code: int = 0) -> str:
    command = [sys.executable, "-m", "flows.services", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == code, f"{command}: {done.stdout}\n{done.stderr}"
    return done.stdout


def holder(name: str, mark: str, word: str) -> psutil.Process:
    """The process below a service's own whose command line has ``word`` first of all."""
    top = psutil.Process(Service(name, RUN).pid() or 0)
    return next(p for p in top.children(recursive=True) if word in p.cmdline() and p in ours(mark))


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("fault", ["down", "interrupt", "kill", "kill-leash", "kill-server"])
def test_the_mlflow_pages_end_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    mark = str(tmp_path)
    monkeypatch.setenv("IWM_TEST_MARK", mark)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    port = free_port()
    page = [sys.executable, "-m", "pipelines.mlflow_ui", "--port", str(port)]
    with subprocess.Popen(page, stderr=subprocess.DEVNULL) as started:
        wait_for(lambda: is_open(port) or started.poll() is not None)
        assert started.poll() is None
        assert_on_loopback(ours(mark), port)
        again = subprocess.run(page, capture_output=True, text=True, check=False)
        assert again.returncode == 1
        assert again.stderr == f"error: mlflow-ui runs already (process {started.pid})\n"
        below = psutil.Process(started.pid).children(recursive=True)
        if fault == "down":
            assert "mlflow-ui: stopped" in services("down")
        elif fault == "interrupt":
            started.send_signal(2)
        elif fault == "kill":
            started.kill()
        elif fault == "kill-leash":
            below[0].kill()
        else:
            below[1].kill()
        started.wait(60)
        wait_for(lambda: not ours(mark), 60)
        assert not is_open(port)
        if fault in ("down", "interrupt"):
            assert started.returncode == 0
    assert "mlflow-ui: was not running" in services("down")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_nothing_is_left_of_prefect_after_down(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mark, port = str(repo), free_port()
    for name in [name for name in os.environ if name.startswith("PREFECT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{port}/api")
    monkeypatch.setenv("IWM_TEST_MARK", mark)
    try:
        services("up", "--port", str(port))
        assert_on_loopback(ours(mark), port)
        # The server is killed: nothing of it is left, `status` tells, `up` starts it again.
        holder("prefect-server", mark, "server").kill()
        wait_for(lambda: Service("prefect-server", RUN).pid() is None, 60)
        assert not is_open(port)
        assert "prefect-server: not running" in services("status", "--port", str(port), code=1)
        services("up", "--port", str(port))
        services("status", "--port", str(port))
        # What watches over the server is killed, and the worker itself.
        os.kill(Service("prefect-server", RUN).pid() or 0, 9)
        holder("prefect-worker", mark, "worker").kill()
        wait_for(lambda: not ours(mark), 60)
    finally:
        services("down")
    assert ours(mark) == []
    assert not is_open(port)
    services("up", "--port", str(port))
    said = services("down")
    assert "prefect-worker: stopped" in said
    assert "prefect-server: stopped" in said
    assert ours(mark) == []
    assert not is_open(port)

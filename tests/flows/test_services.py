"""Server, pool, worker and deployments for real, in a repository of their own."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import toy

from flows.services import Service
from iwm.errors import ServiceError

SLEEP = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(600)"]


def test_a_service_is_known_by_its_lock(tmp_path: Path) -> None:
    service = Service("sleeper", tmp_path)
    assert service.pid() is None
    assert not service.stop()
    service.start(SLEEP, {})
    pid = service.pid()
    assert pid is not None
    assert toy.alive(pid)
    with pytest.raises(ServiceError, match=f"sleeper runs already \\(process {pid}\\)"):
        service.start(SLEEP, {})
    assert service.stop()
    assert not toy.alive(pid)
    assert not service.pid_file.exists()


def test_a_left_over_pid_file_is_not_a_service(tmp_path: Path) -> None:
    service = Service("sleeper", tmp_path)
    service.pid_file.write_text(str(os.getpid()))
    assert service.pid() is None
    assert not service.stop()


def test_a_service_that_refuses_to_end_is_killed(tmp_path: Path) -> None:
    service = Service("stubborn", tmp_path)
    code = "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True)"
    service.start([sys.executable, "-c", f"{code}; time.sleep(600)"], {})
    pid = service.pid()
    assert pid is not None
    while service.last_words() != "up":
        time.sleep(0.02)
    assert service.stop(patience_s=0.5)
    os.waitpid(pid, 0)
    assert not toy.alive(pid)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture
def port(repo: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Everything up, as `make prefect-up` does it; down again at the end."""
    chosen = free_port()
    # What a test process sets for its own harness must not reach these.
    for name in [name for name in os.environ if name.startswith("PREFECT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{chosen}/api")
    try:
        services("up", "--port", str(chosen))
        yield chosen
    finally:
        services("down")


def services(*arguments: str) -> subprocess.CompletedProcess[str]:
    return call(sys.executable, "-m", "flows.services", *arguments)


def call(*command: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == code, f"{command}: {done.stdout}\n{done.stderr}"
    return done


def newest_run() -> tuple[str, str, str]:
    """Id, state and message of the last flow run."""
    run = json.loads(call("prefect", "flow-run", "ls", "--limit", "1", "-o", "json").stdout)[0]
    return run["id"], run["state"]["name"], run["state"]["message"] or ""


def wait_for(condition: object, patience_s: float = 120.0) -> None:
    assert callable(condition)
    deadline = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def run_and_watch(name: str, *parameters: str, code: int = 0) -> None:
    call(
        *("prefect", "deployment", "run", name, "--watch", "--watch-timeout", "180"),
        *(word for parameter in parameters for word in ("--param", parameter)),
        code=code,
    )


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_deployments_run_fail_cancel_and_resume(repo: Path, port: int) -> None:
    services("status", "--port", str(port))

    # The one name, from the repository root.
    run_and_watch("train-iwm")
    assert newest_run()[1:] == ("Completed", "9 tasks up to date")
    assert (repo / "artifacts" / "report" / "made").exists()

    # The full name; a gate that fails, fails the run by its name.
    toy.behave(repo, gate_core="fail")
    run_and_watch("train-iwm/train-iwm", "force=true", 'targets=["gate@core"]', code=1)
    _, state, message = newest_run()
    assert state == "Failed"
    assert message.startswith("gate@core failed: mrr.model 0.031 is 0.169 below")

    # Cancelled while it trains: nothing is left, not even what left the process group.
    toy.behave(repo, train_core="hang")
    training = ("--param", "force=true", "--param", 'targets=["train@core"]')
    call("prefect", "deployment", "run", "train-iwm", *training)
    wait_for((repo / "pids.json").exists)
    processes = json.loads((repo / "pids.json").read_text())
    assert all(map(toy.alive, processes))
    call("prefect", "flow-run", "cancel", newest_run()[0])
    wait_for(lambda: newest_run()[1] == "Cancelled")
    wait_for(lambda: not any(map(toy.alive, processes)), 10)

    # The next run takes up the checkpoint.
    (repo / "pids.json").unlink()
    call("prefect", "deployment", "run", "train-iwm", *training)
    wait_for((repo / "pids.json").exists)
    processes = json.loads((repo / "pids.json").read_text())
    assert (repo / "artifacts" / "train@core" / "checkpoint").read_text() == "14"

    # Down while it runs: the run is cancelled, nothing is left, and up goes on from there.
    assert "flow runs cancelled: 1" in services("down").stdout
    assert not any(map(toy.alive, processes))
    toy.behave(repo)
    services("up", "--port", str(port))
    assert newest_run()[1] == "Cancelled"
    run_and_watch("train-iwm", 'targets=["gate@core"]')
    run_and_watch("release")
    assert newest_run()[1:] == ("Completed", "released iwm:abc")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_new_dataset_triggers_training(repo: Path, port: int, tmp_path: Path) -> None:
    graph = (repo / "dvc.yaml").read_text()
    (repo / "dvc.yaml").write_text(graph.replace("ingest", "shard"))
    toy.record(tmp_path / "inbox" / "one")
    parameters = [f'drop="{tmp_path / "inbox"}"', "settle_s=1"]
    run_and_watch("ingest-gameplay", *parameters)  # nobody asked for training
    assert newest_run()[1:] == ("Completed", "1 recordings taken")
    toy.record(tmp_path / "inbox" / "second")
    run_and_watch("ingest-gameplay", *parameters, "then_train=true")
    wait_for(lambda: newest_run()[1:] == ("Completed", "9 tasks up to date"))
    assert len(toy.calls(repo, "package")) == 1

"""Prefect's server on PostgreSQL: deployments run, and what happened outlives the services."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import toy
from postgresserver import postgres_server

from pipelines._served import free_port

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def call(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stdout}\n{done.stderr}"
    return done.stdout


def services(*words: str) -> str:
    return call(sys.executable, "-m", "flows.services", *words)


def newest_run() -> tuple[str, str]:
    """Id and state of the last flow run, as the server tells them."""
    run = json.loads(call("prefect", "flow-run", "ls", "--limit", "1", "-o", "json"))[0]
    return run["id"], run["state"]["name"]


@pytest.fixture
def database(repo: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    for name in [name for name in os.environ if name.startswith("PREFECT_")]:
        monkeypatch.delenv(name)  # a test process's own harness
    with postgres_server() as server:
        url = f"postgresql+asyncpg://{server}/postgres"
        monkeypatch.setenv("PREFECT_API_DATABASE_CONNECTION_URL", url)
        yield server


def rows(server: str, question: str) -> list[tuple[object, ...]]:
    import psycopg

    with psycopg.connect(f"postgresql://{server}/postgres") as connection:
        return connection.execute(question).fetchall()  # type: ignore[call-overload, no-any-return]


def test_deployments_on_postgres(
    repo: Path, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = str(free_port())
    monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{port}/api")
    try:
        services("up", "--port", port)
        run = ("deployment", "run", "train-iwm", "--watch", "--watch-timeout", "300")
        call("prefect", *run)
        first, state = newest_run()
        assert state == "Completed"
        assert rows(database, "select id::text, state_name from flow_run") == [(first, state)]
        stages = {name for (name,) in rows(database, "select name from task_run")}
        assert {"ingest", "train@core", "gate@core", "package", "report"} <= stages
        assert not list((repo / ".prefect").glob("*.db"))  # nothing went to SQLite

        # The services end and come back: the database has it all.
        services("down")
        services("up", "--port", port)
        assert newest_run() == (first, "Completed")

        # A pool of Kubernetes jobs, as docs/scaling.md makes it. No worker of it is here, so
        # its run waits, and the pool on this machine does not take it.
        folder = repo / "flows/kubernetes"
        template = ("--base-job-template", str(folder / "job-template.json"))
        pool = ("work-pool", "create", "kubernetes", "--type", "kubernetes", *template)
        call("prefect", "--no-prompt", *pool)
        file = ("--prefect-file", str(folder / "prefect.yaml"))
        call("prefect", "--no-prompt", "deploy", "--all", *file)
        found = rows(database, "select name from deployment order by name")
        assert [name for (name,) in found] == [
            "ingest-gameplay", "release", "train-iwm", "train-iwm-kubernetes",
        ]  # fmt: skip
        calls = toy.calls(repo, "ingest")
        call("prefect", "deployment", "run", "train-iwm/train-iwm-kubernetes")
        assert newest_run()[1] in ("Scheduled", "Late", "Pending")
        assert rows(database, "select count(*) from flow_run") == [(2,)]
        assert toy.calls(repo, "ingest") == calls
    finally:
        services("down")

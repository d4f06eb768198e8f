"""Prefect on one machine: server, work pool, GPU limit, worker and deployments.

``python -m flows.services up | down | status``. Each service runs in the background in a
session of its own, on loopback. ``.run/<service>.pid`` holds its process id and stays locked
by it (flock) while it lives, so a left-over file or a reused id is never mistaken for it;
``.run/<service>.log`` holds its output.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.tasks import GPU_LIMIT
from iwm import logs
from iwm.errors import IwmError, ServiceError
from pipelines._stage import LEASH, MLFLOW_UI, QUIET_ENVIRONMENT
from pipelines._stage import RUN_FOLDER as RUN

URL_FILE = RUN / "prefect.url"
LOGGING = Path(__file__).with_name("logging.yml").resolve()
"""What Prefect logs, as JSON."""
POOL = "local"
HOST = "127.0.0.1"
PORT = 4200
STOP_S = 45.0
"""Above the 30 s that a worker grants its flow runs."""
GRACE_S = 40.0
"""Until what does not end when asked is killed."""
IDLE_STOP_S = 10.0
"""For a worker whose flow runs have ended."""


@dataclass(frozen=True)
class Service:
    """A background process of this checkout, known by its locked pid file."""

    name: str
    folder: Path = RUN

    @property
    def pid_file(self) -> Path:
        """Holds the process id; locked by the process."""
        return self.folder / f"{self.name}.pid"

    @property
    def log_file(self) -> Path:
        """What the process has said, the last start only."""
        return self.folder / f"{self.name}.log"

    def pid(self) -> int | None:
        """The process id while the service lives, else ``None``."""
        try:
            with self.pid_file.open() as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    return int(file.read())
        except FileNotFoundError:
            pass
        return None

    def start(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        """Start the command in the background; its parent may end.

        Raises:
            ServiceError: it lives already.
        """
        if (pid := self.pid()) is not None:
            raise ServiceError(f"{self.name} runs already (process {pid})")
        self.folder.mkdir(parents=True, exist_ok=True)
        with self.pid_file.open("w") as lock, self.log_file.open("w") as log:
            fcntl.flock(lock, fcntl.LOCK_EX)
            # A leash that nobody pulls: it holds both ends itself. It is the service's process,
            # and what the command leaves behind, however it ends, ends with it.
            reading, writing = os.pipe()
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(LEASH), str(GRACE_S), *command],
                stdin=reading,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environment},
                start_new_session=True,
                pass_fds=[lock.fileno(), writing],
            )
            os.close(reading)
            os.close(writing)
            lock.write(str(process.pid))

    def stop(self, patience_s: float = STOP_S) -> bool:
        """TERM, then KILL to the whole group; whether there was anything to stop."""
        pid = self.pid()
        if pid is None:
            self.pid_file.unlink(missing_ok=True)
            return False
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + patience_s
        while self.pid() is not None and time.monotonic() < deadline:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
            time.sleep(0.1)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        self.pid_file.unlink(missing_ok=True)
        return True

    def last_words(self) -> str:
        """The last line of the log."""
        with contextlib.suppress(OSError):
            lines = self.log_file.read_text(encoding="utf-8", errors="replace").split("\n")
            return next((line.strip() for line in reversed(lines) if line.strip()), "no output")
        return "no output"


UI = Service(MLFLOW_UI)
"""Started by `iwm mlflow-ui`."""
SERVER = Service("prefect-server")
WORKER = Service("prefect-worker")


def healthy(url: str) -> bool:
    """Whether the server answers."""
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=2) as answer:
            return bool(answer.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def environment(port: int) -> dict[str, str]:
    """What server, worker and the commands for them need to find each other."""
    api = f"http://{HOST}:{port}/api"
    return {
        **QUIET_ENVIRONMENT,
        **({"PREFECT_LOGGING_SETTINGS_PATH": str(LOGGING)} if logs.as_json() else {}),
        "PREFECT_API_URL": api,
        # Absolute, as the worker starts flow runs in a folder of their own.
        "PREFECT_HOME": os.environ.get("PREFECT_HOME") or str(Path(".prefect").resolve()),
        # Plugins are for the command line; in a worker's event loop Prefect cannot start them.
        "PREFECT_PLUGINS_ENABLED": "false",
        "PREFECT_WORKER_QUERY_SECONDS": os.environ.get("PREFECT_WORKER_QUERY_SECONDS", "3"),
        # The flow's stages find this environment's programs first.
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
    }


def ask(path: str, body: Mapping[str, Any], api: str) -> Any:
    """POST to Prefect's HTTP interface; importing its client would take seconds."""
    request = urllib.request.Request(
        f"{api}/{path}",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
        method="POST",
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def unfinished(api: str) -> list[str]:
    """The ids of flow runs of this pool that have begun and not ended."""
    types = ["PENDING", "RUNNING", "CANCELLING"]
    body = {
        "flow_runs": {"state": {"type": {"any_": types}}},
        "work_pools": {"name": {"any_": [POOL]}},
    }
    return [run["id"] for run in ask("flow_runs/filter", body, api)]


def set_state(runs: Sequence[str], kind: str, why: str, api: str) -> None:
    """Force flow runs into a state."""
    for run in runs:
        state = {"type": kind, "message": why}
        ask(f"flow_runs/{run}/set_state", {"state": state, "force": True}, api)


def cancel_all(api: str, patience_s: float = STOP_S) -> tuple[int, bool]:
    """Cancel what runs and wait for its end, so no run stays "Running" without a process.

    Returns:
        How many flow runs were cancelled, and whether all of them ended in time.
    """
    runs = unfinished(api)
    set_state(runs, "CANCELLING", "the services were stopped", api)
    deadline = time.monotonic() + patience_s
    while (left := unfinished(api)) and time.monotonic() < deadline:
        time.sleep(0.5)
    return len(runs), not left


def prefect(*arguments: str, env: Mapping[str, str], quiet: bool = False) -> int:
    """Run the ``prefect`` command.

    Raises:
        ServiceError: it failed and is not ``quiet``; with the last line that it printed.
    """
    result = subprocess.run(
        [sys.executable, "-m", "prefect", "--no-prompt", *arguments],
        env={**os.environ, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if result.returncode and not quiet:
        said = [line.strip() for line in result.stdout.splitlines() if line.strip()]
        raise ServiceError(f"prefect {' '.join(arguments)}: {' '.join(said[-3:]) or 'no output'}")
    return result.returncode


def wait_for_server(url: str, patience_s: float) -> None:
    """Return when the server answers.

    Raises:
        ServiceError: it ended, or does not answer in time.
    """
    deadline = time.monotonic() + patience_s
    while not healthy(url):
        if SERVER.pid() is None:
            raise ServiceError(f"prefect server ended: {SERVER.last_words()} ({SERVER.log_file})")
        if time.monotonic() > deadline:
            raise ServiceError(f"{url} does not answer after {patience_s:.0f} s; {SERVER.log_file}")
        time.sleep(0.5)


app = typer.Typer(
    help="Prefect on this machine.", no_args_is_help=True, pretty_exceptions_enable=False
)

Port = Annotated[int, typer.Option(min=1, max=65535, help="Port of the server, on loopback.")]


@app.command()
def up(
    port: Port = PORT,
    gpu_slots: Annotated[
        int, typer.Option(min=1, help="Stages that may hold the accelerator at once.")
    ] = 1,
    patience_s: Annotated[float, typer.Option(min=1, help="Seconds to wait for it.")] = 180.0,
) -> None:
    """Start server and worker, make pool, GPU limit and deployments; what runs already stays."""
    env = environment(port)
    api = env["PREFECT_API_URL"]
    if SERVER.pid() is None:
        if healthy(api):
            raise ServiceError(f"{api} is answered by a server that is not this checkout's")
        typer.echo("starting the server")
        command = ["server", "start", "--host", HOST, "--port", str(port)]
        SERVER.start([sys.executable, "-m", "prefect", *command], env)
    wait_for_server(api, patience_s)
    if prefect("work-pool", "inspect", POOL, env=env, quiet=True):
        prefect("work-pool", "create", POOL, "--type", "process", env=env)
    if prefect("gcl", "inspect", GPU_LIMIT, env=env, quiet=True):
        prefect("gcl", "create", GPU_LIMIT, "--limit", str(gpu_slots), env=env)
    else:
        prefect("gcl", "update", GPU_LIMIT, "--limit", str(gpu_slots), env=env)
    prefect("deploy", "--all", env=env)
    URL_FILE.write_text(api, encoding="utf-8")
    if WORKER.pid() is None:
        # Without a worker nothing carries these on (power cut); they would hold their
        # deployment's only slot.
        set_state(unfinished(api), "CRASHED", "its worker is gone", api)
        command = ["worker", "start", "--pool", POOL, "--type", "process"]
        WORKER.start([sys.executable, "-m", "prefect", *command], env)
    typer.echo(f"Prefect: http://{HOST}:{port}   pool {POOL}, worker {WORKER.pid()}")
    if port != PORT:
        typer.echo(f"export PREFECT_API_URL={api}")
    typer.echo("prefect deployment run train-iwm")


@app.command()
def down() -> None:
    """Cancel the flow runs, stop the worker, then the server and the MLflow pages."""
    api = URL_FILE.read_text(encoding="utf-8") if URL_FILE.exists() else ""
    patience_s = STOP_S
    if WORKER.pid() is not None and api and healthy(api):
        cancelled, all_ended = cancel_all(api)
        if cancelled:
            typer.echo(f"flow runs cancelled: {cancelled}")
        if all_ended:  # a worker asked to end while it closes a run's books may not hear it
            patience_s = IDLE_STOP_S
    for service, seconds in ((WORKER, patience_s), (SERVER, STOP_S), (UI, STOP_S)):
        stopped = service.stop(seconds)
        typer.echo(f"{service.name}: {'stopped' if stopped else 'was not running'}")


@app.command()
def status(port: Port = PORT) -> None:
    """Say what runs; exit code 1 unless server and worker do and the server answers."""
    answers = healthy(environment(port)["PREFECT_API_URL"])
    for service in (SERVER, WORKER):
        pid = service.pid()
        typer.echo(f"{service.name}: {f'process {pid}' if pid else 'not running'}")
    typer.echo(f"http://{HOST}:{port}: {'answers' if answers else 'does not answer'}")
    if not (answers and SERVER.pid() and WORKER.pid()):
        raise typer.Exit(1)


if __name__ == "__main__":
    try:
        app()
    except IwmError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)

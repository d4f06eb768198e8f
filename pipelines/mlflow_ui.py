"""`iwm mlflow-ui`: the tracking and registry pages of this checkout, on loopback."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from pipelines._stage import LEASH, MLFLOW_UI, RUN_FOLDER, run

GRACE_S = 10.0


def command(
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 5000,
    host: Annotated[str, typer.Option(help="Address to bind.")] = "127.0.0.1",
) -> None:
    """Serve the MLflow pages in the foreground until interrupted, or until `make down`."""
    from pipelines._mlflow import configure, tracking_uri

    with known_by_its_lock():
        configure()
        # Job execution is a feature for scoring traces; it would cost a second set of processes.
        os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
        typer.echo(f"http://{host}:{port}")
        address = ["--host", host, "--port", str(port)]
        server = ["-m", "mlflow", "server", "--workers", "1", "--backend-store-uri", tracking_uri()]
        leash = ["-I", "-S", os.fspath(LEASH), str(GRACE_S)]
        # Its workers end with it, and it with this process, by whatever death.
        process = subprocess.Popen(
            [sys.executable, *leash, sys.executable, *server, *address],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        asked = []

        def end(number: int, _: object) -> None:
            asked.append(number)
            process.terminate()

        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, end)
        code = process.wait()
    raise typer.Exit(0 if asked else code)


@contextmanager
def known_by_its_lock() -> Iterator[None]:
    """Hold ``.run/mlflow-ui.pid``, by which `make down` finds this process.

    Raises:
        ServiceError: another process of this checkout holds it.
    """
    from iwm.errors import ServiceError

    RUN_FOLDER.mkdir(exist_ok=True)
    path = RUN_FOLDER / f"{MLFLOW_UI}.pid"
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise ServiceError(f"{MLFLOW_UI} runs already (process {file.read()})") from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
        path.unlink(missing_ok=True)


if __name__ == "__main__":
    run(command)

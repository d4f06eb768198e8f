"""`iwm mlflow-ui`: the tracking and registry pages of this checkout, on loopback."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from pipelines._stage import run


def command(
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 5000,
    host: Annotated[str, typer.Option(help="Address to bind.")] = "127.0.0.1",
) -> None:
    """Serve the MLflow pages in the foreground until interrupted."""
    from pipelines._mlflow import configure, tracking_uri

    configure()
    # Job execution is a feature for scoring traces; it would cost a second set of processes.
    os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
    typer.echo(f"http://{host}:{port}")
    sys.stdout.flush()
    arguments = ["--backend-store-uri", tracking_uri(), "--host", host, "--port", str(port)]
    os.execv(
        sys.executable, [sys.executable, "-m", "mlflow", "server", "--workers", "1", *arguments]
    )


if __name__ == "__main__":
    run(command)

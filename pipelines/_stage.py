"""What every stage shares: its command line, quiet defaults, one-line errors."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

# No package of the stack may phone home; the words are the ones each of them reads.
QUIET_ENVIRONMENT = {
    "DO_NOT_TRACK": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "BENTOML_DO_NOT_TRACK": "True",
    "DVC_NO_ANALYTICS": "1",
    "GX_ANALYTICS_ENABLED": "false",
    "OTEL_SDK_DISABLED": "true",
}

RUN_FOLDER = Path(".run")
"""Process ids and logs of what runs in the background."""
MLFLOW_UI = "mlflow-ui"

LEASH = Path(__file__).with_name("_leash.py")
"""A program that runs a command and ends with it when the process that asked is gone."""

DATA = Path("data")
INDEX = Path("artifacts/index")
SHARDS = Path("artifacts/shards")
BRANCHES = Path("artifacts/branches")
REMOVALS = Path("artifacts/removals")
TRAJECTORIES = Path("artifacts/trajectories")
MODELS = Path("artifacts/models")
EVALUATION = Path("artifacts/evaluation")
REPORTS = Path("reports")


def share_processors() -> None:
    """Let idle compute threads sleep; call before torch is first imported.

    OpenMP's threads otherwise spin at every barrier. With one other busy process on two cores
    small models then train many times slower.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def quiet() -> None:
    """Switch telemetry off unless the user has switched it on."""
    for name, value in QUIET_ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def run(command: Callable[..., Any]) -> None:
    """Run a stage's typer command as the program: errors in one line, exit code 1."""
    import typer

    from iwm import logs
    from iwm.errors import one_line_errors
    from iwm.monitoring.stages import observed, place

    quiet()
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(command)
    stage, phase = place([Path(sys.argv[0]).stem.strip("_"), *sys.argv[1:]])
    with one_line_errors():
        logs.configure(stage, phase)
        with observed(stage, phase):
            app()

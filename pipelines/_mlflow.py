"""Where runs and models are tracked: one rule for training, the registry and packaging.

``MLFLOW_TRACKING_URI`` decides. Unset, it is a sqlite file under ``mlruns/`` of the
repository, named by its absolute path, with the artifacts beside it, so that nothing
needs a server. ``postgresql+psycopg://...`` and ``http(s)://...`` work as they are;
behind ``http(s)`` the server chooses where artifacts lie.
"""

from __future__ import annotations

import logging
import os
import re
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from iwm.errors import TrackingError
from pipelines._stage import quiet

STORE = Path("mlruns")
CHECKED_BYTES = 1_000_000_000
"""Larger sqlite files are not read through at each start."""
_SQLITE = "sqlite:///"


def tracking_uri() -> str:
    """The URI in force; run from the repository root."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{STORE.resolve() / 'mlflow.db'}"


def artifact_location(experiment: str) -> str | None:
    """Folder (as a URI) for a new experiment's artifacts; ``None`` lets a server choose."""
    if tracking_uri().startswith(("http://", "https://", "databricks")):
        return None
    return (STORE.resolve() / "artifacts" / experiment).as_uri()


def configure() -> Any:
    """Point MLflow at the store, creating its tables at first use.

    Returns:
        An ``mlflow.MlflowClient`` for it.

    Raises:
        TrackingError: the store cannot be opened or reached.
    """
    quiet()
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    # Schema migrations are announced line by line otherwise.
    for name in ("alembic", "mlflow.store.db.utils"):
        logging.getLogger(name).setLevel(logging.WARNING)
    from filelock import FileLock
    from mlflow import MlflowClient, set_registry_uri, set_tracking_uri

    uri = tracking_uri()
    set_tracking_uri(uri)
    set_registry_uri(uri)
    STORE.mkdir(parents=True, exist_ok=True)
    if uri.startswith(_SQLITE):
        check_database(Path(uri.removeprefix(_SQLITE)))
    try:
        # Two processes that create the tables at once would trip over each other.
        with FileLock(STORE / ".create.lock"):
            client = MlflowClient(uri, uri)
            client.search_experiments(max_results=1)
    except Exception as error:  # every backend has exceptions of its own
        raise TrackingError(f"MLflow at {one_line(uri)}: {one_line(error)}") from None
    return client


def check_database(path: Path) -> None:
    """Refuse a sqlite file that is damaged, before anything trusts or writes it.

    Raises:
        TrackingError: it is; with what to do.
    """
    if not path.is_file() or path.stat().st_size > CHECKED_BYTES:
        return
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as database:
            found = str(database.execute("PRAGMA quick_check(1)").fetchone()[0])
    except sqlite3.OperationalError:  # busy
        return
    except sqlite3.DatabaseError as error:
        found = str(error)
    if found != "ok":
        raise TrackingError(
            f"MLflow's database {path} is damaged ({one_line(found)}): put a copy of it back, or "
            "move it away, and the next run or registration begins a new one"
        )


def experiment_id(client: Any, name: str) -> str:
    """The experiment's id; created with our artifact location if there is none."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name, artifact_location=artifact_location(name)))
        except MlflowException:  # another process was first
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage == "deleted":
        raise TrackingError(f"MLflow experiment {name!r} is deleted; restore it or choose another")
    return str(found.experiment_id)


def one_line(text: object) -> str:
    """An error or address for people: one line, bounded, without user names and passwords."""
    return re.sub(r"://[^/@\s]*@", "://", " ".join(str(text).split()))[:300]

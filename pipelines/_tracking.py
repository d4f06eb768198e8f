"""A training run in MLflow: parameters, metrics, system metrics, provenance, pictures."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from iwm import logs
from iwm.files import read_json, write_json
from pipelines._mlflow import configure, experiment_id

RUN_FILE = "tracking.json"
RUN_TAG = "iwm.run_id"
"""The id in the logs of the processes that trained."""
_FLUSH_S = 5.0


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one level of dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


class MlflowTracker:
    """Tells MLflow about one training run; a resumed run goes on in the same MLflow run.

    Args:
        experiment: MLflow experiment.
        name: of the run, e.g. ``core``.
        folder: the model's folder; ``tracking.json`` there remembers the run.
        tags: provenance: commit, data revisions, profile.

    An unreachable store at the start is an error; one that fails later is reported once and
    training goes on, since ``history.jsonl`` has everything.
    """

    def __init__(self, experiment: str, name: str, folder: Path, tags: Mapping[str, Any]) -> None:
        self.experiment, self.name, self.folder = experiment, name, folder
        self.tags = {key: str(value) for key, value in tags.items() if value is not None}
        self.run_id: str | None = None
        self._waiting: list[tuple[str, float, int, int]] = []
        self._flushed = 0.0
        self._failed = False

    def start(self, step: int, parameters: dict[str, Any]) -> None:
        """Open a run, or the one that this model's training began in."""
        self._client = configure()
        former = self._former()
        self.run_id = former if step else None
        if self.run_id is None:
            if former is not None:
                self._abandon(former)
            run = self._client.create_run(
                experiment_id(self._client, self.experiment),
                run_name=self.name,
                tags={**self.tags, "mlflow.source.name": f"pipelines.train {self.name}"},
            )
            self.run_id = run.info.run_id
            record = {"run_id": self.run_id, "experiment": self.experiment}
            write_json(self.folder / RUN_FILE, record)
            self._log_parameters(parameters)
        else:
            self._client.update_run(self.run_id, status="RUNNING")
        # The last of them, where a training was stopped and went on.
        self._client.set_tag(self.run_id, RUN_TAG, logs.run_id())
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        logging.getLogger("mlflow.system_metrics").setLevel(logging.WARNING)
        monitor: Any = SystemMetricsMonitor  # untyped in MLflow
        self._monitor = monitor(self.run_id, sampling_interval=5, resume_logging=step > 0)
        self._monitor.start()

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Keep metrics; send them every few seconds in one batch."""
        now = round(time.time() * 1000)
        self._waiting += [(key, float(value), now, step) for key, value in metrics.items()]
        if time.monotonic() - self._flushed > _FLUSH_S:
            self._flush()

    def picture(self, path: Path) -> None:
        """Keep a picture with the run."""
        if self.run_id is not None:
            self._try(lambda: self._client.log_artifact(self.run_id, str(path), "pictures"))

    def finish(self, status: str) -> None:
        """Close the run."""
        self._flush()
        self._try(self._monitor.finish)
        word = {"done": "FINISHED", "stopped": "KILLED"}.get(status, "FAILED")
        self._try(lambda: self._client.set_terminated(self.run_id, status=word))

    def _former(self) -> str | None:
        from mlflow.exceptions import MlflowException

        try:
            run_id = str(read_json(self.folder / RUN_FILE)["run_id"])
            self._client.get_run(run_id)
        except (OSError, ValueError, KeyError, MlflowException):
            return None  # another store, or none: begin a run there
        return run_id

    def _abandon(self, former: str) -> None:
        """Close the run of a training that was killed before its first checkpoint."""
        if self._client.get_run(former).info.status == "RUNNING":
            self._client.set_terminated(former, status="KILLED")

    def _log_parameters(self, parameters: dict[str, Any]) -> None:
        from mlflow.entities import Param

        flat = {key: str(value)[:6000] for key, value in flatten(parameters).items()}
        items = [Param(key, value) for key, value in flat.items()]
        for begin in range(0, len(items), 100):
            self._client.log_batch(self.run_id, params=items[begin : begin + 100])

    def _flush(self) -> None:
        from mlflow.entities import Metric

        self._flushed = time.monotonic()
        waiting, self._waiting = self._waiting, []
        for begin in range(0, len(waiting), 1000):
            part = [Metric(*entry) for entry in waiting[begin : begin + 1000]]
            self._try(lambda part=part: self._client.log_batch(self.run_id, metrics=part))

    def _try(self, call: Any) -> None:
        try:
            call()
        except Exception as error:  # every store has exceptions of its own
            if not self._failed:
                reason = " ".join(str(error).split())[:200]
                print(f"warning: MLflow did not take a record: {reason}", file=sys.stderr)
            self._failed = True


def log_evaluation(run_id: str | None, metrics: Mapping[str, Any], pictures: list[Path]) -> None:
    """Add an evaluation's figures and pictures to the run that trained the model.

    A run that this store does not know is passed over: the reports are on disk in any case.
    """
    if run_id is None:
        return
    from mlflow.entities import Metric
    from mlflow.exceptions import MlflowException

    client = configure()
    now = round(time.time() * 1000)
    numbers = {
        key: float(value)
        for key, value in flatten(metrics).items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    }
    try:
        client.log_batch(
            run_id, metrics=[Metric(f"eval.{key}", value, now, 0) for key, value in numbers.items()]
        )
        for picture in pictures:
            client.log_artifact(run_id, str(picture), "pictures")
    except MlflowException as error:
        print(f"warning: run {run_id}: {' '.join(str(error).split())[:200]}", file=sys.stderr)

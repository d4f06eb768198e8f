"""A training run's metrics: a tracker that is told what the others are told.

It computes only when the trainer logs (``log_every``), so a step costs nothing more.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from iwm.monitoring import catalogue as c
from iwm.monitoring.board import Board, port

_NAMED = {
    "loss": c.LOSS,
    "lr": c.RATE,
    "epoch": c.EPOCH,
    "samples_per_second": c.SPEED,
}


class MetricsTracker:
    """Keeps ``iwm_train_<phase>.prom`` true, and answers on ``IWM_METRICS_PORT``.

    Args:
        phase: the entry under ``train`` in params.yaml.
        folder: of the phase's results; the age of its last checkpoint is looked up there.
    """

    def __init__(self, phase: str, folder: Path) -> None:
        self.phase, self._checkpoints = phase, folder / "checkpoints"
        self.board = Board(f"train_{phase}")
        self.server: Any = None
        self._train: dict[str, Any] = {}

    def start(self, step: int, parameters: dict[str, Any]) -> None:
        """Training begins, or goes on after ``step`` steps."""
        self._train = parameters["train"]
        self.board.set(c.STEP, step, self.phase)
        self.board.set(c.RUNNING, 1, self.phase)
        self._renew()
        if (at := port()) is not None:
            self.server = self.board.serve(at)

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Show figures after ``step`` steps."""
        board, phase = self.board, self.phase
        board.set(c.STEP, step, phase)
        for name, value in metrics.items():
            if name in _NAMED:
                board.set(_NAMED[name], value, phase)
            else:
                board.set(c.FIGURE, value, phase, name)
        epochs, speed = metrics.get("epoch", 0.0), metrics.get("samples_per_second", 0.0)
        if epochs > 0 and speed > 0:
            total = round(self._train["epochs"] * step / epochs)
            if self._train.get("max_steps") is not None:
                total = min(total, self._train["max_steps"])
            seconds = self._train["batch_size"] / speed
            board.set(c.STEPS, total, phase)
            board.set(c.STEP_SECONDS, seconds, phase)
            board.set(c.LEFT, max(0, total - step) * seconds, phase)
        self._renew()

    def finish(self, status: str) -> None:  # noqa: ARG002
        """Training is over, well or not; the stage's own metrics say which."""
        self.board.set(c.RUNNING, 0, self.phase)
        self.board.clear(c.LEFT)
        self._renew()
        if self.server is not None:
            self.server.shutdown()
            self.server.server_close()

    def _renew(self) -> None:
        self.board.set(c.UPDATED, time.time(), self.phase)
        moments = []
        for path in self._checkpoints.glob("step-*"):
            try:
                moments.append(path.stat().st_mtime)
            except OSError:  # replaced by a newer one meanwhile
                continue
        if moments:
            self.board.set(c.CHECKPOINT, max(moments), self.phase)
        self.board.write()

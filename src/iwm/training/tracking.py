"""Where a run's parameters and metrics go: a Protocol, and the file that is always kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Protocol

from iwm.files import write_text


class Tracker(Protocol):
    """Receives what a training run has to say. Called from rank 0 only."""

    def start(self, step: int, parameters: dict[str, Any]) -> None:
        """A run begins (``step`` 0) or goes on after ``step`` steps."""

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Metrics after ``step`` steps."""

    def finish(self, status: str) -> None:
        """``done``, ``stopped`` or ``failed``."""


class HistoryTracker:
    """``history.jsonl``: one JSON object per logged step."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def start(self, step: int, parameters: dict[str, Any]) -> None:  # noqa: ARG002
        """Keep the lines up to ``step``; later ones are about to be made again."""
        kept = []
        if step and self.path.exists():
            for line in self.path.read_text(encoding="utf-8").splitlines():
                try:
                    if json.loads(line)["step"] <= step:
                        kept.append(line)
                except (ValueError, KeyError):
                    break  # a line cut off by a kill; nothing valid follows
        # A new file, never the old one: DVC may have hard-linked that into its cache.
        write_text(self.path, "".join(f"{line}\n" for line in kept))

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Append one line."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **metrics}) + "\n")

    def finish(self, status: str) -> None:
        """Nothing to close: every line was written whole."""


def read_history(path: Path) -> list[dict[str, float]]:
    """The lines of a history file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]

"""What a stage leaves for Prometheus: how it went, and the state of data and gates after it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from iwm.files import read_json
from iwm.monitoring import catalogue as c
from iwm.monitoring.board import Board, folder

KILLED = "killed"
_OBSERVER = "IWM_OBSERVER"
"""Process id of what observes the stage, for those below it."""


STAGES = (
    "record", "ingest", "validate", "shard", "branch", "trajectories", "train", "evaluate", "gate",
    "register", "milestones", "package", "report",
)  # fmt: skip
"""Commands that are counted and timed."""
PHASED = frozenset({"trajectories", "train", "evaluate", "gate", "register"})
"""Those that work on one phase, named by their first argument."""


def place(arguments: Sequence[str]) -> tuple[str, str]:
    """``(stage, phase)`` of a command line, e.g. ``train core``; an empty phase where none is."""
    stage, *rest = arguments or ("",)
    phase = rest[0] if stage in PHASED and rest and not rest[0].startswith("-") else ""
    return stage, phase


@contextmanager
def observed(stage: str, phase: str = "") -> Iterator[None]:
    """Count and time a stage's run; results are done, failed, stopped and killed.

    A run that ended without a word, by SIGKILL or with the machine, is counted as killed when
    the stage is started next. A training of several processes counts once.
    """
    rank, above = os.environ.get("RANK"), os.environ.get(_OBSERVER)
    # torchrun takes the place of the process that began, and the first rank goes on for it; where
    # torchrun is a process of its own, the one that started it observes.
    goes_on = rank == "0" and above == str(os.getppid())
    watched = rank not in (None, "0") or (rank == "0" and above is not None and not goes_on)
    if folder() is None or stage not in STAGES or watched:
        yield
        return
    board = Board(f"stage_{stage}_{phase}" if phase else f"stage_{stage}")
    board.take_up((c.STAGE_RUNS, c.STAGE_RUNNING, c.STAGE_SECONDS, c.STAGE_SUCCESS))
    if board.get(c.STAGE_RUNNING, stage, phase) and not goes_on:
        board.add(c.STAGE_RUNS, stage, phase, KILLED)
    began, clock = time.time(), time.monotonic()
    board.set(c.STAGE_STARTED, began, stage, phase)
    board.set(c.STAGE_RUNNING, 1, stage, phase)
    board.write()
    os.environ[_OBSERVER] = str(os.getpid())
    result = "failed"
    try:
        yield
        result = "done"
    except SystemExit as end:
        result = "failed" if end.code else "done"
        raise
    except KeyboardInterrupt:
        result = "stopped"
        raise
    finally:
        del os.environ[_OBSERVER]
        board.add(c.STAGE_RUNS, stage, phase, result)
        board.set(c.STAGE_RUNNING, 0, stage, phase)
        board.set(c.STAGE_SECONDS, time.monotonic() - clock, stage, phase)
        if result == "done":
            board.set(c.STAGE_SUCCESS, time.time(), stage, phase)
        board.write()
        write_state()


def write_state(root: Path = Path()) -> None:
    """Renew what is known of the data and the gates, from the stages' own files.

    Args:
        root: the checkout.
    """
    if folder() is None:
        return
    board = Board("state")
    made = _read(root / "artifacts/shards/shards.json")
    if made:
        board.set(c.DATASET, 1, str(made.get("revision", "")), _tracked(root / "data.dvc"))
        board.set(c.RECORDINGS, len(made.get("recordings", {})))
        for split, frames in made.get("frames", {}).items():
            board.set(c.FRAMES, frames, split)
    index = _read(root / "artifacts/index/recordings.json")
    for recording, count in index.get("set_aside", {}).items():
        board.set(c.QUARANTINED, count, recording)
    for file in sorted((root / "reports/gates").glob("*.json")):
        _gate(board, file.stem, _read(file))
    board.write()


def _tracked(path: Path) -> str:
    """By which name DVC knows the recordings; nothing where it does not."""
    import yaml

    try:
        return str(yaml.safe_load(path.read_text(encoding="utf-8"))["outs"][0]["md5"])
    except (OSError, yaml.YAMLError, KeyError, IndexError, TypeError):
        return ""


def _gate(board: Board, phase: str, report: Mapping[str, Any]) -> None:
    if "passed" not in report:
        return
    board.set(c.GATE, int(bool(report["passed"])), phase)
    for rule in report.get("rules", []):
        figure = str(rule.get("figure"))
        # Several rules may judge one figure: all must hold.
        holds = rule.get("verdict") == "pass" and board.get(c.GATE_RULE, phase, figure) != 0
        board.set(c.GATE_RULE, int(holds), phase, figure)
        value, bound = rule.get("value"), rule.get("threshold")
        if isinstance(value, (int, float)):
            board.set(c.GATE_FIGURE, value, phase, figure)
        if isinstance(bound, (int, float)):
            harder = min if rule.get("comparison") == "<" else max
            former = board.get(c.GATE_THRESHOLD, phase, figure)
            bound = bound if former is None else harder(bound, former)
            board.set(c.GATE_THRESHOLD, bound, phase, figure)


def _read(path: Path) -> dict[str, Any]:
    """A JSON object; one that is missing or broken says nothing."""
    try:
        value = read_json(path)
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}

"""Making ``data/``: every plan's recording, in parallel, whole or not at all."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from iwm.errors import ConfigError, DataError
from iwm.files import TEMPORARY_PREFIX, atomic_directory, only_one, read_json, write_json
from iwm.gameplay.config import RecordConfig, RecordPlan
from iwm.gameplay.executor import process_pool
from iwm.gameplay.play import play
from iwm.gameplay.reader import read_steps
from iwm.progress import Progress

UNFINISHED = f"{TEMPORARY_PREFIX}plans.json"
"""In the folder of recordings while they are made: names of the plans; left there by a kill."""

_POLL_S = 0.2
_BATCH = 25  # frames between updates of the shared counter


@dataclass(frozen=True)
class RecordSummary:
    """What :func:`record` did."""

    made: tuple[str, ...]
    """Names of the recordings made now."""
    kept: tuple[str, ...]
    """What ``data/`` held before; untouched."""
    left: tuple[str, ...]
    """Folders that killed recorders left behind: readable, no part of the data."""
    frames: int
    episodes: int
    bytes: int
    seconds: float

    def lines(self) -> list[str]:
        """The summary for people."""
        lines = []
        if self.made:
            rate = self.frames / max(self.seconds, 1e-9)
            lines.append(
                f"recorded {', '.join(self.made)}: {self.frames:,} frames, {self.episodes:,} "
                f"episodes, {self.bytes / 1e6:,.0f} MB, {rate:,.0f} frames/s"
            )
        if self.kept:
            lines.append(f"kept as they are: {', '.join(self.kept)}")
        if not self.made:
            lines.append(
                "nothing recorded: "
                + ("the data is there already; --add makes plans that are missing")
            )
        for folder in self.left:
            lines.append(f"left by a recorder that was killed: {folder}")
        return lines


def record(
    data_dir: Path, config: RecordConfig, *, add: bool = False, only: Sequence[str] = ()
) -> RecordSummary:
    """Make the recordings that the configuration plans.

    Without ``add`` or ``only``, nothing is made where ``data_dir`` holds anything, but for what
    a killed process had set out to make. What is there is never changed or removed. Each
    recording is written under a temporary name and renamed when whole; one that a person plays
    is written in place, so that no stop loses what was played.

    Args:
        data_dir: the folder of recordings; made if need be.
        config: seed, number of processes and plans.
        add: make the plans whose folder is missing, also beside other data.
        only: names of plans to make, if missing; all when empty.

    Raises:
        ConfigError: two plans of one name, an unknown name, or a plan that fits no game.
        DataError: a game does not start or its process died.
    """
    plans = _chosen(config, only)
    with only_one(data_dir):
        return _record(data_dir, config, plans, everything=add or bool(only))


def _record(
    data_dir: Path, config: RecordConfig, plans: list[RecordPlan], *, everything: bool
) -> RecordSummary:
    data_dir.mkdir(parents=True, exist_ok=True)
    entries = sorted(entry.name for entry in data_dir.iterdir())
    kept = tuple(name for name in entries if not name.startswith("."))
    left = tuple(
        str(data_dir / name)
        for name in entries
        if name.startswith(TEMPORARY_PREFIX) and name != UNFINISHED
    )
    unfinished = read_json(data_dir / UNFINISHED) if UNFINISHED in entries else []
    todo = [plan for plan in plans if plan.name not in kept]
    if kept and not everything:
        todo = [plan for plan in todo if plan.name in unfinished]
    names = {plan.name for plan in todo}
    rest = {plan.name for plan in config.plans}.intersection(unfinished) - names - set(kept)
    started = time.monotonic()
    if todo:
        _remember(data_dir, names | rest)
        try:
            _make_all(todo, data_dir, config)
        except Exception:
            if not any((data_dir / name).exists() for name in names):
                _remember(data_dir, rest)  # as if it had not been asked
            raise
    _remember(data_dir, rest)
    seconds = time.monotonic() - started
    frames = episodes = size = 0
    for plan in todo:
        steps = read_steps(data_dir / plan.name)
        frames += steps.num_rows
        episodes += len(steps["episode"].unique())
        size += sum(file.stat().st_size for file in (data_dir / plan.name).iterdir())
    made = tuple(plan.name for plan in todo)
    return RecordSummary(made, kept, left, frames, episodes, size, seconds)


def _make_all(todo: list[RecordPlan], data_dir: Path, config: RecordConfig) -> None:
    with Progress("record", sum(plan.frames for plan in todo), "frames") as progress:
        played = [plan for plan in todo if plan.policy == "keyboard"]
        _make_in_processes(
            [plan for plan in todo if plan.policy != "keyboard"], data_dir, config, progress
        )
        for plan in played:
            play(plan, config.seed, data_dir / plan.name, progress.advance)


def _remember(data_dir: Path, names: Collection[str]) -> None:
    """Leave word of the recordings that are being made, should this process be killed."""
    if names:
        write_json(data_dir / UNFINISHED, sorted(names))
    else:
        (data_dir / UNFINISHED).unlink(missing_ok=True)


def _chosen(config: RecordConfig, only: Sequence[str]) -> list[RecordPlan]:
    names = [plan.name for plan in config.plans]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise ConfigError(f"record.plans: more than one is named {', '.join(sorted(twice))}")
    unknown = [name for name in only if name not in names]
    if unknown:
        raise ConfigError(f"record.plans: no plan {unknown[0]!r}; there are {', '.join(names)}")
    return [plan for plan in config.plans if not only or plan.name in only]


_counter: Any = None
"""In a worker: the frames written by all workers, shared with the parent."""


def _set_counter(counter: Any) -> None:
    global _counter
    _counter = counter


def _make(plan: RecordPlan, seed: int, folder: Path) -> None:
    """Make one recording in a worker: whole under its name, or not at all."""
    pending = 0

    def advance(frames: int) -> None:
        nonlocal pending
        pending += frames
        if pending >= _BATCH:
            flush()

    def flush() -> None:
        nonlocal pending
        with _counter.get_lock():
            _counter.value += pending
        pending = 0

    with atomic_directory(folder) as temporary:
        play(plan, seed, temporary, advance)
    flush()


def _make_in_processes(
    plans: list[RecordPlan], data_dir: Path, config: RecordConfig, progress: Progress
) -> None:
    if not plans:
        return
    counter = get_context("spawn").Value("q", 0)
    seen = 0

    def show() -> None:
        nonlocal seen
        now = counter.value
        progress.advance(now - seen)
        seen = now

    # The longest first, so that no process is left with a long one at the end.
    order = sorted(plans, key=lambda plan: -plan.frames)
    with process_pool(min(config.workers, len(order)), _set_counter, (counter,)) as pool:
        futures = {
            pool.submit(_make, plan, config.seed, data_dir / plan.name): plan for plan in order
        }
        _finish(futures, show)


def _finish(futures: dict[Future[None], RecordPlan], show: Callable[[], None]) -> None:
    """Wait for all; the first failure cancels what has not begun."""
    waiting = set(futures)
    try:
        while waiting:
            done, waiting = wait(waiting, timeout=_POLL_S, return_when=FIRST_COMPLETED)
            show()
            for future in done:
                future.result()
    except BrokenProcessPool:
        names = ", ".join(plan.name for future, plan in futures.items() if future in waiting)
        raise DataError(f"record: a recording process died while making {names}") from None
    finally:
        for future in waiting:
            future.cancel()

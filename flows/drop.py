"""A drop folder: which of the recordings that people put there are whole."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from iwm.errors import DataError
from iwm.gameplay.reader import image_files, read_steps, scan_video
from iwm.gameplay.schema import read_recording

MARK = "recording.json"

Snapshot = tuple[tuple[str, int, int], ...]
"""Path, size and time of change of every file, sorted."""


@dataclass(frozen=True)
class Look:
    """What one look into the folder found: recordings to take, and why the others wait."""

    ready: tuple[Path, ...]
    waiting: dict[str, str]


@dataclass
class Drop:
    """Looks into a folder of recordings, again and again; nothing in it is ever changed.

    A recording is taken when none of its files changed for ``settle_s`` seconds, as told by two
    looks (not by the files' own times: a copy keeps the original's), and when it reads as a
    whole one: its description, its steps, and a frame for every step. One that stays broken
    waits, and is looked at again when it changes.

    Args:
        folder: holds recording folders, or is one.
        settle_s: seconds of quiet that end a copy.
        clock: seconds that never jump back.
    """

    folder: Path
    settle_s: float = 10.0
    clock: Callable[[], float] = time.monotonic
    _seen: dict[Path, tuple[Snapshot, float]] = field(default_factory=dict)
    _settled: dict[Path, tuple[Snapshot, str | None]] = field(default_factory=dict)

    def look(self, taken: frozenset[str] = frozenset()) -> Look:
        """Look once.

        Args:
            taken: names of recordings that need not be looked at any more.

        Raises:
            DataError: the folder is not there.
        """
        if not self.folder.is_dir():
            raise DataError(f"{self.folder}: the drop folder is not there")
        ready, waiting = [], {}
        for recording in recordings(self.folder):
            if recording.name in taken:
                continue
            if why := self._waits(recording):
                waiting[recording.name] = why
            else:
                ready.append(recording)
        return Look(tuple(ready), waiting)

    def _waits(self, recording: Path) -> str | None:
        now, snapshot = self.clock(), _snapshot(recording)
        before = self._seen.get(recording)
        if before is None or before[0] != snapshot:
            self._seen[recording] = snapshot, now
            return "still being written"
        if now - before[1] < self.settle_s:
            return "still being written"
        settled = self._settled.get(recording)
        if settled is None or settled[0] != snapshot:
            # Reading every packet takes a while: once for a state of the files.
            settled = self._settled[recording] = snapshot, broken(recording)
        return settled[1]


def recordings(path: Path) -> list[Path]:
    """The recording folders at or directly below ``path``."""
    if (path / MARK).is_file():
        return [path]
    return sorted(mark.parent for mark in path.glob(f"[!.]*/{MARK}"))


def _snapshot(folder: Path) -> Snapshot:
    found = []
    for path in sorted(folder.rglob("*")):
        try:
            about = path.stat()
        except OSError:  # gone between the two calls
            continue
        found.append((str(path.relative_to(folder)), about.st_size, about.st_mtime_ns))
    return tuple(found)


def broken(folder: Path) -> str | None:
    """Why a recording cannot be taken as it lies there; ``None`` if it can.

    A recording that was cut off while it was made is whole up to the cut and can be.
    """
    try:
        recording = read_recording(folder)
        steps = read_steps(folder).num_rows
        path = folder / recording.frames_path
        frames = len(image_files(path)) if path.is_dir() else len(scan_video(path).pts)
    except (DataError, OSError) as error:
        return str(error)
    if frames < steps:
        return f"{path}: {frames} frames for {steps} steps"
    return None if steps else f"{folder}: holds no steps"

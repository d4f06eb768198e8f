"""Writing files so that nothing partial ever stands under its final name.

Write to a temporary name beside the target, flush to disk, rename. A reader, a
``kill -9`` or a full disk then sees the old file or the new one, never a half.
Hard-linked outputs (DVC's cache) are replaced, never changed in place.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

TEMPORARY_PREFIX = ".partial-"


def temporary_beside(path: Path) -> Path:
    """A fresh hidden name in the same folder (same file system, so rename is atomic)."""
    return path.with_name(f"{TEMPORARY_PREFIX}{secrets.token_hex(4)}-{path.name}")


def fsync_path(path: Path) -> None:
    """Flush a file or a folder's entries to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path; rename it to ``path`` when the block succeeds.

    The block must create a *file* there. On any error the temporary file is
    removed and ``path`` keeps what it had.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(target)
    try:
        yield temporary
        fsync_path(temporary)
        temporary.replace(target)
        fsync_path(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_directory(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary folder; swap it in for ``path`` when the block succeeds.

    A former folder of that name is moved aside first and removed last, so the
    name always holds a whole folder except for one instant between two renames.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(target)
    temporary.mkdir()
    former: Path | None = None
    try:
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                fsync_path(file)
        if target.exists():
            former = temporary_beside(target)
            target.replace(former)
        temporary.replace(target)
        fsync_path(target.parent)
    except BaseException:
        if former is not None and not target.exists():
            former.replace(target)
            former = None
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if former is not None:
            shutil.rmtree(former, ignore_errors=True)


@contextmanager
def only_one(path: str | os.PathLike[str]) -> Iterator[None]:
    """Let one process at a time make ``path``; another one says so and waits its turn.

    What killed processes left beside ``path`` under temporary names is removed first. The kernel
    frees a lock when its holder dies, so a left-over lock file locks nothing.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.with_name(f".{target.name}.lock").open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            print(f"{target}: waiting for process {holder}, which is making it", file=sys.stderr)
            fcntl.flock(file, fcntl.LOCK_EX)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        for left in target.parent.glob(f"{TEMPORARY_PREFIX}{'?' * 8}-{target.name}"):
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        yield


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write JSON atomically: sorted keys, two spaces, no NaN, newline at the end.

    Raises:
        ValueError: a number is not finite (JSON has no word for it).
    """
    write_text(path, json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n")


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read a JSON file."""
    return json.loads(Path(path).read_text(encoding="utf-8"))

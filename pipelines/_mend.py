"""DVC's own small files, after a kill in the middle of writing one of them.

DVC writes these in place. Each can be made again from what is there, so a damaged one is put
aside rather than left to stop every later command.
"""

from __future__ import annotations

import fcntl
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

RWLOCK, GUARD = Path(".dvc/tmp/rwlock"), Path(".dvc/tmp/rwlock.lock")
DAMAGED = ".damaged"


def mend(root: Path = Path()) -> list[str]:
    """Put DVC's files below ``root`` in order; what was done, a line each.

    The lock file: entries of processes that are gone, their numbers given to others, hold
    nothing. ``dvc.lock`` and ``data.dvc``: put aside; stages that it named are looked at again,
    and finished ones are found done.
    """
    said = []
    if (root / RWLOCK).is_file():
        with (root / GUARD).open("a") as guard:
            fcntl.flock(guard, fcntl.LOCK_EX)  # DVC's own, while it writes
            if why := _free(root / RWLOCK):
                said.append(f"{root / RWLOCK}: {why}")
    for name in ("dvc.lock", "data.dvc"):
        path = root / name
        if path.is_file() and not _whole(path):
            path.replace(path.with_name(name + DAMAGED))
            said.append(f"{path}: damaged; put aside as {name}{DAMAGED}")
    return said


def _free(path: Path) -> str | None:
    """Remove entries that no DVC process holds."""
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        readers, writers = held.get("read", {}), held.get("write", {})
        read = {
            file: left
            for file, infos in readers.items()
            if (left := [info for info in infos if _lives(info)])
        }
        write = {file: info for file, info in writers.items() if _lives(info)}
    except (ValueError, AttributeError, TypeError, KeyError):
        path.unlink()
        return "damaged; removed"
    if (read, write) == (readers, writers):
        return None
    path.write_text(json.dumps({"read": read, "write": write}), encoding="utf-8")
    return "held by processes that are gone; freed"


def _lives(info: dict[str, Any]) -> bool:
    """Whether the process of an entry is there and still DVC, not another of the same number."""
    import psutil

    with suppress(psutil.NoSuchProcess):
        try:
            return any("dvc" in word for word in psutil.Process(int(info["pid"])).cmdline())
        except psutil.AccessDenied:
            return True
    return False


def _whole(path: Path) -> bool:
    """Whether DVC can read one of its files."""
    import yaml
    from dvc.schema import COMPILED_LOCKFILE_SCHEMA, COMPILED_SINGLE_STAGE_SCHEMA
    from voluptuous import Invalid

    schema = COMPILED_LOCKFILE_SCHEMA if path.name == "dvc.lock" else COMPILED_SINGLE_STAGE_SCHEMA
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
        schema(found)
    except (yaml.YAMLError, UnicodeDecodeError, Invalid, AttributeError, TypeError):
        return False
    return bool(found)

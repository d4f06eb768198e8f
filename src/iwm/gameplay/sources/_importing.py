"""What both imports share: names, copying with progress, the step table."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from iwm.errors import DataError
from iwm.files import atomic_directory
from iwm.gameplay.images import printable
from iwm.gameplay.schema import STEPS_FILE, STEPS_SCHEMA
from iwm.progress import Progress

_CHUNK = 2**22


def slug(name: str) -> str:
    """A recording's name out of any text: ``a-z 0-9 _ . -``, at most 64 long."""
    plain = re.sub(r"[^a-z0-9_.-]+", "-", printable(name).lower()).strip("-._")[:64]
    return plain or "recording"


@contextmanager
def new_recording(data_dir: Path, name: str) -> Iterator[Path]:
    """A folder to fill that becomes ``data_dir/name`` when the block succeeds.

    Raises:
        DataError: it exists already, or writing failed (no space left, no permission);
            nothing is left behind.
    """
    target = data_dir / name
    if target.exists():
        raise DataError(f"{printable(target)}: exists already; choose another --name")
    try:
        with atomic_directory(target) as folder:
            yield folder
    except OSError as error:
        raise DataError(f"{printable(target)}: not written: {error.strerror or error}") from None


def place(source: Path, target: Path, link: bool, progress: Progress) -> None:
    """Hard-link or copy one file; a link that the file system refuses becomes a copy."""
    size = source.stat().st_size
    if link:
        try:
            os.link(source.resolve(), target)
        except OSError:
            link = False
        else:
            progress.advance(size)
            return
    with source.open("rb") as reader, target.open("wb") as writer:
        while chunk := reader.read(_CHUNK):
            writer.write(chunk)
            progress.advance(len(chunk))
    shutil.copystat(source, target)


def write_steps(folder: Path, columns: dict[str, Any]) -> None:
    """Write ``steps.parquet``."""
    import pyarrow.parquet as pq

    pq.write_table(pa.table(columns, schema=STEPS_SCHEMA), folder / STEPS_FILE, compression="zstd")

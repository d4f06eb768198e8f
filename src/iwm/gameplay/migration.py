"""Recordings and indexes of earlier versions, brought up to date. Frames are never touched.

Recording 1 -> 2 seals it: ``SHA256SUMS`` beside ``recording.json`` holds the hash of every other
file, in the format of ``sha256sum``. Index 1 -> 2 counts: frames and episodes by split and frames
set aside stand in ``recordings.json``, so that nobody need read the rows to know them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from iwm.errors import DataError
from iwm.files import read_json, write_json, write_text
from iwm.gameplay.index import (
    FRAMES_FOLDER,
    INDEX,
    QUARANTINE_FILE,
    RECORDINGS_FILE,
    described,
    split_counts,
)
from iwm.gameplay.schema import RECORDING, RECORDING_FILE, SEAL_FILE, read_recording, sums


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        DataError: missing, or not one.
    """
    try:
        values = read_json(path)
    except FileNotFoundError:
        raise DataError(f"{path}: not found") from None
    except (ValueError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not JSON: {error}") from None
    if not isinstance(values, dict):
        raise DataError(f"{path}: expected an object, found {type(values).__name__}")
    return values


def migrate_recording(folder: Path, *, write: bool = True) -> int | None:
    """Seal a whole recording of version 1.

    Args:
        folder: of the recording.
        write: do it; otherwise only look.

    Returns:
        The version it had; ``None`` when it is up to date.

    Raises:
        DataError: not a recording, not complete, newer, or too old.
    """
    path = folder / RECORDING_FILE
    values = read_object(path)
    found = RECORDING.known(values.get("version"), path)
    if found == RECORDING.current:
        return None
    if not read_recording(folder).complete:
        raise DataError(f"{path}: the recording is not complete; only whole ones are sealed")
    if write:
        # The description last: with version 2 the sums must be there.
        write_text(folder / SEAL_FILE, "".join(f"{sha}  {name}\n" for name, sha in sums(folder)))
        write_json(path, {**values, "version": RECORDING.current})
    return found


def migrate_index(folder: Path, *, write: bool = True) -> int | None:
    """Bring an index up to date; its rows stay as they are.

    Returns:
        The version it had; ``None`` when it is up to date.

    Raises:
        DataError: not an index, newer, or too old; a table that cannot be read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = folder / RECORDINGS_FILE
    values = read_object(path)
    found = INDEX.known(values.get("version"), path)
    if found == INDEX.current:
        return None
    recordings = values.get("recordings")
    if not isinstance(recordings, dict):
        raise DataError(f"{path}: names no recordings; it is not an index")

    def table(file: Path, *columns: str) -> pa.Table:
        try:
            return pq.read_table(file, columns=list(columns))
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{file}: not readable: {' '.join(str(error).split())}") from None

    columns = ("status", "split", "episode")
    counts = {
        name: split_counts(table(folder / FRAMES_FOLDER / f"{name}.parquet", *columns))
        for name in sorted(recordings)
    }
    aside = table(folder / QUARANTINE_FILE, "recording", "frames")
    if write:
        write_json(path, described(recordings, counts, aside))
    return found

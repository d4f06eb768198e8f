"""What shards are made from: the usable rows of the index, their name, and the work to encode them.

Everything before the first frame is decoded. It holds for days of play: columns stay in
Arrow, and rows become Python objects a part at a time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from iwm.data.config import ShardConfig
from iwm.errors import DataError
from iwm.gameplay.index import (
    FRAMES_FOLDER,
    INDEX_SCHEMA,
    RECORDINGS_FILE,
    ROWS,
    SPLITS,
    read_table,
)
from iwm.gameplay.schema import Recording
from iwm.versions import Format

if TYPE_CHECKING:
    import pyarrow as pa

_PART = 65_536  # of the index, made into Python objects at a time
_CHUNK = 1024  # frames a worker process encodes before it hands them back


def check_version(schema: pa.Schema, key: bytes, form: Format, path: Path) -> None:
    """Refuse a table that this software does not read.

    Raises:
        DataError: the version is newer, too old, or missing.
    """
    found = (schema.metadata or {}).get(key, b"").decode()
    if not found.isdigit():
        raise DataError(f"{path}: has no {key.decode()}; it was not made by iwm")
    form.check(int(found), path)


def read_usable_frames(index_dir: Path) -> pa.Table:
    """Rows of the ingestion index with status ``ok``, by recording, episode and step.

    Raises:
        DataError: the index is missing, damaged, newer than this software or has no such row.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    files = sorted((index_dir / FRAMES_FOLDER).glob("*.parquet"))
    if not files or not (index_dir / RECORDINGS_FILE).exists():  # it is written last
        raise DataError(f"{index_dir}: no index there, or an unfinished one; run `iwm ingest`")
    tables = []
    for file in files:
        try:
            table = read_table(file)
            check_version(table.schema, b"iwm.index.version", ROWS, file)
            tables.append(table.select(INDEX_SCHEMA.names).cast(INDEX_SCHEMA))
        except (pa.ArrowException, KeyError, OSError) as error:
            reason = " ".join(str(error).split())
            raise DataError(f"{file}: not an index, or damaged: {reason}") from None
    table = pa.concat_tables(tables)
    table = table.filter(pc.equal(table["status"], "ok"))
    if table.num_rows == 0:
        raise DataError(f"{index_dir}: no frame in it is usable; see its quarantine.parquet")
    order = [("recording", "ascending"), ("episode", "ascending"), ("step", "ascending")]
    return table.sort_by(order).combine_chunks()


def data_revision(table: pa.Table) -> str:
    """Hash of what the frames are, independent of file formats and library versions."""
    digest = hashlib.sha256()
    columns = ["key", "split", "action", "action_vector", "reward", "done", "sha1"]
    # In parts: a day of play has millions of rows, and Python's objects are ten times theirs.
    for part in table.select(columns).to_batches(max_chunksize=_PART):
        for row in zip(*(column.to_pylist() for column in part.columns), strict=True):
            digest.update(repr(row).encode())
    return digest.hexdigest()


def count_frames(table: pa.Table) -> tuple[dict[str, int], dict[str, int]]:
    """Frames and episodes of each split of a table of INDEX_SCHEMA."""
    import pyarrow.compute as pc

    columns = ["split", "recording", "episode"]
    episodes = table.select(columns).group_by(columns).aggregate([([], "count_all")])
    frames = {}
    for split in SPLITS:
        rows = episodes.filter(pc.equal(episodes["split"], split))
        frames[split] = (int(pc.sum(rows["count_all"]).as_py() or 0), rows.num_rows)
    return (
        {split: count for split, (count, _) in frames.items()},
        {split: count for split, (_, count) in frames.items()},
    )


def encoding_tasks(
    data_dir: Path, table: pa.Table, recordings: Mapping[str, Recording], cfg: ShardConfig
) -> Iterator[tuple[Any, ...]]:
    """Arguments of :func:`encode_frames`, a thousand frames of one recording at a time.

    Args:
        data_dir: the recordings, one folder each.
        table: INDEX_SCHEMA rows in order.
        recordings: metadata of every recording in the table.
        cfg: size and encoding.
    """
    names = table["recording"].combine_chunks().dictionary_encode()
    codes, known = names.indices.to_numpy(), names.dictionary.to_pylist()
    frames = table["frame"].to_numpy()
    largest = int((table["width"].to_numpy().astype(np.int64) * table["height"].to_numpy()).max())
    starts = [0, *(np.flatnonzero(codes[1:] != codes[:-1]) + 1).tolist(), len(codes)]
    for start, end in pairwise(starts):
        name = known[codes[start]]
        for first in range(start, end, _CHUNK):
            part = frames[first : min(end, first + _CHUNK)]
            yield data_dir / name, recordings[name], part, largest, cfg

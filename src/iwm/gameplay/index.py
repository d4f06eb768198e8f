"""The index: one row a frame, made once by ingestion, read by everything after.

``artifacts/index/frames/<recording>.parquet`` holds :data:`INDEX_SCHEMA`, one
file a recording, rows in order of (episode, step). ``artifacts/index/recordings.json``
holds each recording's metadata and what it counts, ``artifacts/index/quarantine.parquet`` what
was set aside and why.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from iwm.versions import Format

INDEX = Format("index", current=2, readable=2)
"""Of ``recordings.json``. 2: with ``counts`` and ``set_aside``."""
ROWS = Format("index rows", current=1)
"""Of the tables of frames."""

FRAMES_FOLDER = "frames"
RECORDINGS_FILE = "recordings.json"
QUARANTINE_FILE = "quarantine.parquet"

SPLITS = ("train", "val", "test")

INDEX_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),  # "<recording>/<episode:06>/<step:06>"
        pa.field("recording", pa.string(), nullable=False),
        pa.field("episode", pa.int32(), nullable=False),
        pa.field("step", pa.int32(), nullable=False),
        pa.field("time_s", pa.float64(), nullable=False),
        pa.field("frame", pa.int64(), nullable=False),
        pa.field("action", pa.int32(), nullable=False),
        pa.field("action_vector", pa.list_(pa.float32())),
        pa.field("reward", pa.float32(), nullable=False),
        pa.field("done", pa.bool_(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("luma_mean", pa.float32(), nullable=False),  # 0..255
        pa.field("luma_std", pa.float32(), nullable=False),  # 0..255
        pa.field("sharpness", pa.float32(), nullable=False),  # variance of the Laplacian
        pa.field("phash", pa.uint64(), nullable=False),  # 64-bit perceptual hash
        pa.field("sha1", pa.binary(20), nullable=False),  # of the decoded pixels: exact duplicates
        pa.field("status", pa.string(), nullable=False),  # "ok", or why the frame is set aside
        pa.field("split", pa.string(), nullable=False),  # one of SPLITS
    ],
    metadata={b"iwm.index.version": str(ROWS.current).encode()},
)

QUARANTINE_SCHEMA = pa.schema(
    [
        pa.field("recording", pa.string(), nullable=False),
        pa.field("file", pa.string(), nullable=False),
        pa.field("frame", pa.int64()),  # null: the whole file
        pa.field("frames", pa.int64(), nullable=False),  # how many frames this row stands for
        pa.field("reason", pa.string(), nullable=False),
    ]
)


def described(
    recordings: Mapping[str, Any], counts: Mapping[str, Any], quarantine: pa.Table
) -> dict[str, Any]:
    """``recordings.json``.

    Args:
        recordings: name -> metadata.
        counts: name -> :func:`split_counts` of its rows.
        quarantine: rows of QUARANTINE_SCHEMA.

    Returns:
        ``{"version", "recordings", "counts": {name: {split: {"frames", "episodes"}}},
        "set_aside": {name: frames}}``; counts are of good frames.
    """
    aside: dict[str, int] = {}
    for row in quarantine.select(["recording", "frames"]).to_pylist():
        aside[row["recording"]] = aside.get(row["recording"], 0) + row["frames"]
    return {
        "version": INDEX.current,
        "recordings": dict(recordings),
        "counts": dict(counts),
        "set_aside": aside,
    }


def split_counts(table: pa.Table) -> dict[str, dict[str, int]]:
    """Good frames, and episodes that hold one, of each split.

    Args:
        table: rows of one recording, with ``status``, ``split`` and ``episode``.
    """
    good = table.filter(pc.equal(table["status"], "ok")).select(["split", "episode"])
    found = {}
    for split in SPLITS:
        episodes = good.filter(pc.equal(good["split"], split))["episode"]
        found[split] = {"frames": len(episodes), "episodes": len(episodes.unique())}
    return found


def write_table(table: pa.Table, path: Path) -> None:
    """Write parquet with a checksum of every page; the same rows give the same bytes."""
    import pyarrow.parquet as pq

    pq.write_table(table, path, compression="zstd", write_page_checksum=True)


def read_table(path: Path) -> pa.Table:
    """Read parquet; a changed bit is an error, where the pages have checksums.

    Raises:
        OSError: not there, or damaged.
        pyarrow.ArrowException: damaged.
    """
    import pyarrow.parquet as pq

    return pq.ParquetFile(path, page_checksum_verification=True).read()

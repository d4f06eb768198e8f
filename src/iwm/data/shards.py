"""Shards: ordinary WebDataset tars with a parquet index beside them.

``artifacts/shards/`` holds

``train-000000.tar``, ``val-000000.tar``, ``test-000000.tar`` ...
    Every tar belongs to one split, so any WebDataset reader can stream a split. A sample is
    two members, ``<key>.jpg`` (or ``.png``) and ``<key>.json`` (:func:`sample_metadata`),
    where the key is the index's ``<recording>/<episode:06>/<step:06>``; samples stand in
    order of (recording, episode, step).
``index.parquet``
    :data:`SHARD_SCHEMA`: every column of the ingestion index plus shard, offset and size of
    the image, in the order of the tars (train, val, test).
``shards.json``
    :class:`ShardSet`.

The same frames and settings give the same bytes, whatever the number of workers.
"""

from __future__ import annotations

import io
import json
import re
import tarfile
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import BrokenExecutor, Executor, Future
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from iwm.data.config import ShardConfig
from iwm.data.frames import EXTENSIONS, encode_frames
from iwm.data.shard_plan import count_frames, data_revision, encoding_tasks, read_usable_frames
from iwm.errors import ConfigError, DataError
from iwm.files import atomic_directory, read_json, write_json
from iwm.gameplay.executor import make_executor, places
from iwm.gameplay.index import (
    INDEX_SCHEMA,
    SPLITS,
    write_table,
)
from iwm.gameplay.schema import Recording, read_recording
from iwm.progress import Progress
from iwm.settings import parse, settings, to_dict
from iwm.versions import Format

if TYPE_CHECKING:
    import pyarrow as pa

SHARDS = Format("shards", current=1)
SHARDS_FILE = "shards.json"
SHARD_INDEX_FILE = "index.parquet"


@settings
class ShardFile:
    """One tar."""

    name: str
    split: str
    frames: int
    bytes: int


@settings
class ShardSet:
    """``shards.json``: what the shards hold and how to read them."""

    version: int = SHARDS.current
    format: Literal["jpeg", "png"]
    width: int
    height: int
    fit: str
    quality: int
    revision: str
    """SHA-256 over keys, splits, actions, rewards and pixels: the data, not their encoding."""
    frames: dict[str, int]
    """Split -> number of frames."""
    episodes: dict[str, int]
    """Split -> number of episodes."""
    shards: tuple[ShardFile, ...]
    recordings: dict[str, Recording]
    """Name -> metadata: the action vocabulary, frame rate, source, licence."""


def shard_schema() -> pa.Schema:
    """Schema of ``index.parquet``: the index, and where each image stands."""
    import pyarrow as pa

    places = [
        pa.field("shard", pa.string(), nullable=False),  # file name of the tar
        pa.field("offset", pa.int64(), nullable=False),  # first byte of the image in it
        pa.field("size", pa.int64(), nullable=False),  # bytes of the image
    ]
    return pa.schema(
        [*INDEX_SCHEMA, *places], metadata={b"iwm.shards.version": str(SHARDS.current).encode()}
    )


def sample_metadata(row: Mapping[str, Any]) -> bytes:
    """The ``.json`` member of a sample: what happened at this step, in a few fields.

    Raises:
        DataError: a number is not finite.
    """
    names = ("recording", "episode", "step", "time_s", "action", "reward", "done", "split")
    values = {name: row[name] for name in names}
    if row["action_vector"] is not None:
        values["action_vector"] = row["action_vector"]
    try:
        return json.dumps(values, sort_keys=True, allow_nan=False).encode()
    except ValueError:
        raise DataError(f"{row['key']}: reward, time or action is not a finite number") from None


class _SplitWriter:
    """The tars of one split: opens the next when one is full."""

    def __init__(self, folder: Path, split: str, cfg: ShardConfig) -> None:
        self._folder, self._split, self._cfg = folder, split, cfg
        self._tar: tarfile.TarFile | None = None
        self._frames = 0
        self.files: list[ShardFile] = []

    @property
    def _name(self) -> str:
        return f"{self._split}-{len(self.files):06d}.tar"

    def write(self, key: str, image: bytes, metadata: bytes) -> tuple[str, int]:
        """Append a sample; returns the tar's name and the offset of the image in it."""
        if self._frames == self._cfg.frames_per_shard:
            self.close()
        if self._tar is None:
            self._tar = tarfile.open(  # noqa: SIM115  (closed by `close`)
                self._folder / self._name, "w", format=tarfile.PAX_FORMAT
            )
        offset = _add(self._tar, f"{key}.{EXTENSIONS[self._cfg.format]}", image)
        _add(self._tar, f"{key}.json", metadata)
        self._frames += 1
        return self._name, offset

    def close(self) -> None:
        """End the tar that is open, if any."""
        if self._tar is None:
            return
        tar, self._tar = self._tar, None
        tar.close()
        size = (self._folder / self._name).stat().st_size
        self.files.append(
            ShardFile(name=self._name, split=self._split, frames=self._frames, bytes=size)
        )
        self._frames = 0


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> int:
    """Append a member whose header depends on nothing but its name and size; its offset."""
    member = tarfile.TarInfo(name)
    member.size, member.mode, member.mtime = len(data), 0o444, 0  # owner 0, no owner's name
    tar.addfile(member, io.BytesIO(data))
    return tar.offset - -(-len(data) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE


def _check_key(key: str) -> None:
    # A key is a path inside the tar; webdataset skips names like __this__ as metadata.
    if not re.fullmatch(r"(?!__|\.)[^/\\\x00]+/\d{6,}/\d{6,}", key):
        raise DataError(f"{key!r}: a recording's name cannot begin with a dot or with __")


def pack(
    out_dir: Path,
    table: pa.Table,
    images: Iterable[bytes],
    cfg: ShardConfig,
    recordings: Mapping[str, Recording],
    advance: Callable[[int], object] = lambda _: None,
) -> ShardSet:
    """Write encoded frames as shards with their index; ``out_dir`` appears whole or not at all.

    Args:
        out_dir: folder to make or replace.
        table: INDEX_SCHEMA rows, at least one, in order of (recording, episode, step).
        images: one encoded image a row, already of the size and format of ``cfg``.
        cfg: what the images are, and how many go into a tar.
        recordings: metadata of every recording in the table.
        advance: called with the number of samples written since the last call.

    Raises:
        DataError: a key or number that a sample cannot hold, or the disk is full.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    # Numbers apart from objects: millions of samples have a place each.
    shard: list[str] = []
    offset, size = array("q"), array("q")
    try:
        with atomic_directory(out_dir) as folder:
            with ExitStack() as stack:
                writers = {split: _SplitWriter(folder, split, cfg) for split in SPLITS}
                for writer in writers.values():
                    stack.callback(writer.close)
                supply = iter(images)
                for batch in table.to_batches(max_chunksize=1024):
                    for row in batch.to_pylist():
                        _check_key(row["key"])
                        image = next(supply)
                        writer = writers[row["split"]]
                        name, begin = writer.write(row["key"], image, sample_metadata(row))
                        shard.append(name)
                        offset.append(begin)
                        size.append(len(image))
                    advance(batch.num_rows)
            columns = [
                *table.columns,
                pa.array(shard),
                *map(pa.array, map(np.asarray, (offset, size))),
            ]
            index = pa.Table.from_arrays(columns, schema=shard_schema())
            index = pa.concat_tables(
                [index.filter(pc.equal(index["split"], split)) for split in SPLITS]
            )
            write_table(index.combine_chunks(), folder / SHARD_INDEX_FILE)
            described = _describe(table, cfg, recordings, writers)
            write_json(folder / SHARDS_FILE, to_dict(described))
    except OSError as error:
        raise DataError(f"{out_dir}: cannot write the shards: {error.strerror or error}") from None
    return described


def _describe(
    table: pa.Table,
    cfg: ShardConfig,
    recordings: Mapping[str, Recording],
    writers: Mapping[str, _SplitWriter],
) -> ShardSet:
    frames, episodes = count_frames(table)
    return ShardSet(
        format=cfg.format,
        width=cfg.width,
        height=cfg.height,
        fit=cfg.fit,
        quality=cfg.quality,
        revision=data_revision(table),
        frames=frames,
        episodes=episodes,
        shards=tuple(file for writer in writers.values() for file in writer.files),
        recordings=dict(recordings),
    )


def read_shard_set(folder: Path) -> ShardSet:
    """Read and check ``shards.json``.

    Raises:
        DataError: missing, not JSON, a wrong field, or written by a newer version.
    """
    path = folder / SHARDS_FILE
    try:
        values = read_json(path)
    except FileNotFoundError:
        raise DataError(f"{path}: not found; run `iwm shard` first") from None
    except (ValueError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not JSON: {error}") from None
    return parse_shard_set(values, str(path))


def parse_shard_set(values: object, where: str) -> ShardSet:
    """Check the plain values of a ``shards.json``; ``where`` names it in errors.

    Raises:
        DataError: a wrong field, or written by a newer version.
    """
    if not isinstance(values, dict):
        raise DataError(f"{where}: expected an object, found {type(values).__name__}")
    SHARDS.check(values.get("version"), where)
    try:
        return parse(ShardSet, values, where)
    except ConfigError as error:
        raise DataError(str(error)) from None


def _encoded_in_order(
    executor: Executor,
    data_dir: Path,
    table: pa.Table,
    recordings: Mapping[str, Recording],
    cfg: ShardConfig,
) -> Iterator[bytes]:
    """Encoded images in the table's order; a few chunks ahead of the writer, no more."""
    waiting: deque[Future[list[bytes]]] = deque()
    ahead = 2 * places(executor, cfg)
    try:
        for task in encoding_tasks(data_dir, table, recordings, cfg):
            waiting.append(executor.submit(encode_frames, *task))
            if len(waiting) > ahead:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()
    except BrokenExecutor:
        raise DataError(
            "shard: a worker process died (out of memory, or its decoder crashed)"
        ) from None
    finally:
        for future in waiting:
            future.cancel()


def write_shards(data_dir: Path, index_dir: Path, out_dir: Path, cfg: ShardConfig) -> ShardSet:
    """Turn the usable frames of the recordings into shards.

    Args:
        data_dir: the recordings, one folder each.
        index_dir: the ingestion index.
        out_dir: the shards; made or replaced when whole.
        cfg: size, encoding, frames a tar, where the work runs.

    Raises:
        DataError: nothing usable, a recording that changed since ingestion, a full disk.
        ConfigError: no Dask scheduler, or one without workers.
        ClusterError: the Dask cluster was lost.
    """
    table = read_usable_frames(index_dir)
    names = table["recording"].unique().to_pylist()
    recordings = {name: read_recording(data_dir / name) for name in names}
    alone = cfg.executor == "processes" and cfg.workers == 1
    with (
        make_executor(replace(cfg, executor="serial") if alone else cfg) as executor,
        Progress("shard", table.num_rows, "frames") as progress,
    ):
        # Other hosts have the same path, but another working folder.
        where = data_dir.absolute() if cfg.executor == "dask" else data_dir
        images = _encoded_in_order(executor, where, table, recordings, cfg)
        return pack(out_dir, table, images, cfg, recordings, progress.advance)

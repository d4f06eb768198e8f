"""Random access to the shards: one ``pread`` an image, no tar parsing, no shared state.

A store may be used from any number of threads and handed to forked or spawned processes:
``pread`` keeps no position, and descriptors are opened by whoever needs them first.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from iwm.data.frames import Image8, decoder
from iwm.data.shard_plan import check_version
from iwm.data.shards import (
    SHARD_INDEX_FILE,
    SHARDS,
    ShardSet,
    read_shard_set,
    shard_schema,
)
from iwm.errors import DataError
from iwm.gameplay.index import read_table

if TYPE_CHECKING:
    import pyarrow as pa

Rows = npt.NDArray[np.int64]

MAX_OPEN_FILES = 256
"""Descriptors a store keeps; the usual limit of a process is 1024."""


class _OpenFile:
    """A descriptor that closes with its last user, so eviction cannot close it under a read."""

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


class ShardStore:
    """A folder of shards, read by row.

    A *row id* is a position in :attr:`table`, which stands in the order of the tars.

    Args:
        folder: what :func:`iwm.data.shards.write_shards` made.

    Raises:
        DataError: no shards there, an index newer than this software, a tar that is missing
            or shorter than it was written.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self.info: ShardSet = read_shard_set(self.folder)
        self.table: pa.Table = self._read_index()
        if len(self) != (count := sum(self.info.frames.values())):
            raise DataError(
                f"{self.folder / SHARD_INDEX_FILE}: has {len(self)} rows where shards.json counts "
                f"{count}; run `iwm shard` again"
            )
        self._shards = [file.name for file in self.info.shards]
        self._check_shards()
        self._offset: Rows = self.table["offset"].to_numpy()
        self._size: Rows = self.table["size"].to_numpy()
        self._shard = self._positions("shard", self._shards)
        self._start_reading()

    def _read_index(self) -> pa.Table:
        import pyarrow as pa

        path = self.folder / SHARD_INDEX_FILE
        try:
            table = read_table(path)
            check_version(table.schema, b"iwm.shards.version", SHARDS, path)
            return table.select(shard_schema().names).cast(shard_schema()).combine_chunks()
        except FileNotFoundError:
            raise DataError(f"{path}: not found; run `iwm shard` first") from None
        except (pa.ArrowException, KeyError, OSError) as error:
            reason = " ".join(str(error).split())
            raise DataError(f"{path}: not an index, or damaged: {reason}") from None

    def _check_shards(self) -> None:
        for file in self.info.shards:
            path = self.folder / file.name
            if Path(file.name).name != file.name:
                raise DataError(f"{file.name!r}: a shard stands beside shards.json, nowhere else")
            if not path.is_file():
                raise DataError(f"{path}: the shard is missing; run `iwm shard` again")
            if (size := path.stat().st_size) != file.bytes:
                raise DataError(f"{path}: has {size} bytes instead of {file.bytes}; it is damaged")

    def _positions(self, column: str, names: Sequence[str]) -> npt.NDArray[np.int32]:
        """For each row, where its value of ``column`` stands in ``names``."""
        import pyarrow as pa
        import pyarrow.compute as pc

        found = pc.index_in(self.table[column], value_set=pa.array(names, pa.string()))
        if found.null_count:
            path = self.folder / SHARD_INDEX_FILE
            raise DataError(f"{path}: has a {column} that shards.json does not name")
        positions: npt.NDArray[np.int32] = found.to_numpy().astype(np.int32)
        return positions

    def _start_reading(self) -> None:
        self._lock = threading.Lock()
        self._files: OrderedDict[int, _OpenFile] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_lock", "_files")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start_reading()

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, 3)."""
        return self.info.height, self.info.width, 3

    @property
    def recordings(self) -> list[str]:
        """Names of the recordings; ``Batch.recording`` counts in this order."""
        return sorted(self.info.recordings)

    def vocabulary(self, recording: str) -> tuple[str, ...]:
        """Action names of a recording by id; empty when its actions are continuous.

        Raises:
            DataError: no such recording in the shards.
        """
        try:
            return self.info.recordings[recording].actions
        except KeyError:
            raise DataError(
                f"{self.folder}: has no recording {recording!r}; it has "
                f"{', '.join(self.recordings)}"
            ) from None

    def all_actions(self, recordings: Sequence[str] | None = None) -> tuple[str, ...]:
        """The names of all recordings' actions, each once, in order of first appearance."""
        names = [self.vocabulary(item) for item in recordings or self.recordings]
        return tuple(dict.fromkeys(name for item in names for name in item))

    def actions(
        self, vocabulary: Sequence[str] | None = None, recordings: Sequence[str] | None = None
    ) -> npt.NDArray[np.int64]:
        """Every row's action: its recording's own id, or its place in ``vocabulary``; -1: none.

        Args:
            vocabulary: names.
            recordings: only these need be in the vocabulary; others' rows are -1.

        Raises:
            DataError: a recording has an action that the vocabulary lacks; both are named.
        """
        own: npt.NDArray[np.int64] = self.table["action"].to_numpy().astype(np.int64)
        if vocabulary is None:
            return own
        mapped = np.full(len(own), -1, np.int64)
        for item in recordings or self.recordings:
            names = self.vocabulary(item)
            if missing := [name for name in names if name not in vocabulary]:
                raise DataError(
                    f"{self.folder}: {item} has the action {missing[0]!r}, which the model's "
                    f"vocabulary lacks: {', '.join(vocabulary)}"
                )
            places = np.array([*(list(vocabulary).index(name) for name in names), -1], np.int64)
            here = self.recording_ids == self.recordings.index(item)
            mapped[here] = places[own[here]]
        return mapped

    @cached_property
    def recording_ids(self) -> npt.NDArray[np.int32]:
        """Position of each row's recording in :attr:`recordings`."""
        return self._positions("recording", self.recordings)

    @cached_property
    def action_vectors(self) -> npt.NDArray[np.float32] | None:
        """Continuous actions [rows, widest], zeros where there are none; None if all discrete."""
        width = max((item.action_dim for item in self.info.recordings.values()), default=0)
        if width == 0:
            return None
        vectors = np.zeros((len(self), width), np.float32)
        for row, vector in enumerate(self.table["action_vector"].to_pylist()):
            if vector is not None:
                vectors[row, : len(vector)] = vector
        return vectors

    def rows(self, split: str, recordings: Sequence[str] | None = None) -> Rows:
        """Row ids of a split, in the order of the tars.

        Args:
            split: ``train``, ``val`` or ``test``.
            recordings: only these; all when None.

        Raises:
            DataError: no such split or recording, or nothing in it.
        """
        if split not in self.info.frames:
            raise DataError(f"{self.folder}: has no split {split!r}")
        wanted = self.table["split"].to_numpy(zero_copy_only=False) == split
        if recordings is not None:
            for name in recordings:
                self.vocabulary(name)
            ids = [self.recordings.index(name) for name in recordings]
            wanted &= np.isin(self.recording_ids, ids)
        found = np.flatnonzero(wanted)
        if len(found) == 0:
            among = f" of {', '.join(recordings)}" if recordings is not None else ""
            raise DataError(
                f"{self.folder}: the split {split}{among} is empty; record more episodes or "
                "change ingest.split"
            )
        return found

    def keys(self, rows: Rows) -> list[str]:
        """Keys of rows, ``<recording>/<episode>/<step>``."""
        keys: list[str] = self.table["key"].take(rows).to_pylist()
        return keys

    def _file(self, shard: int) -> _OpenFile:
        with self._lock:
            file = self._files.get(shard)
            if file is None:
                path = self.folder / self._shards[shard]
                try:
                    file = _OpenFile(path)
                except OSError as error:
                    raise DataError(f"{path}: {error.strerror}") from None
                self._files[shard] = file
                if len(self._files) > MAX_OPEN_FILES:
                    self._files.popitem(last=False)
            return file

    def _complaint(self, row: int, reason: str) -> DataError:
        path = self.folder / self._shards[self._shard[row]]
        return DataError(f"{path}: {self.keys(np.array([row]))[0]}: {reason}")

    def read(self, rows: Rows) -> list[bytes]:
        """Encoded images.

        Raises:
            DataError: a shard is gone or too short; names the shard and the key.
        """
        shards, sizes = self._shard[rows].tolist(), self._size[rows].tolist()
        files = {shard: self._file(shard) for shard in set(shards)}  # kept open while we read
        descriptors = [files[shard].descriptor for shard in shards]
        # `map` keeps the loop in C: a pread of a small image costs little more than a loop turn.
        encoded = list(map(os.pread, descriptors, sizes, self._offset[rows].tolist()))
        if list(map(len, encoded)) != sizes:
            place = next(i for i, data in enumerate(encoded) if len(data) != sizes[i])
            found = f"{len(encoded[place])} of {sizes[place]} bytes"
            raise self._complaint(int(rows[place]), f"cut short at {found}")
        return encoded

    def decode(self, rows: Rows, out: Image8 | None = None) -> Image8:
        """Decoded images, uint8 [len(rows), height, width, 3], RGB.

        Args:
            rows: row ids, in any order, repeats allowed.
            out: where to put them; made when None.

        Raises:
            DataError: a shard is gone, too short or damaged; names the shard and the key.
        """
        images: Image8 = np.empty((len(rows), *self.image_shape), np.uint8) if out is None else out
        decode = decoder(self.info.format, self.image_shape)
        for place, (encoded, image) in enumerate(zip(self.read(rows), images, strict=True)):
            try:
                decode(encoded, image)
            except ValueError as error:
                raise self._complaint(int(rows[place]), f"damaged image: {error}") from None
        return images

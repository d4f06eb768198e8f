"""Training batches from the shards: shuffled, split over ranks, resumable to the step.

The order of an epoch is a permutation drawn from (seed, epoch) alone. Step *s* is its *s*-th
slice of ``batch_size`` windows, of which rank *r* of *w* takes the *r*-th of *w* parts that
are equal to within one window.
So the position of a run is (epoch, step): nothing else need be saved, and neither the number
of workers nor the number of ranks changes which windows make up a step.

Workers are threads: decoding and reading release the interpreter lock, so threads scale like
processes without copying pictures between them.
"""

from __future__ import annotations

import math
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch

from iwm.data.batch import Batch
from iwm.data.frames import Image8
from iwm.data.reader import Rows, ShardStore
from iwm.errors import ConfigError, DataError


def epoch_order(count: int, seed: int, epoch: int) -> Rows:
    """The permutation of ``count`` windows for an epoch."""
    stream = np.random.PCG64(np.random.SeedSequence((seed, epoch)))
    order: Rows = np.random.Generator(stream).permutation(count)
    return order


def window_starts(store: ShardStore, rows: Rows, window: int, stride: int) -> Rows:
    """Rows at which a window of ``window`` frames, ``stride`` steps apart, may begin.

    All steps from the first to the last frame are present and in one episode: a window neither
    crosses episodes nor jumps over a frame that was set aside.

    Args:
        store: where the rows are from.
        rows: row ids in ascending order.
        window: frames a window, T.
        stride: steps from one frame to the next.
    """
    span = (window - 1) * stride
    if span == 0:
        return rows
    if span >= len(rows):
        return rows[:0]
    recording = store.recording_ids[rows]
    episode = store.table["episode"].to_numpy()[rows]
    step = store.table["step"].to_numpy()[rows]
    follows = (
        (np.diff(rows) == 1)
        & (np.diff(recording) == 0)
        & (np.diff(episode) == 0)
        & (np.diff(step) == 1)
    )
    run = np.concatenate([[0], np.cumsum(~follows)])
    starts: Rows = rows[:-span][run[:-span] == run[span:]]
    return starts


class _Buffers:
    """Memory for pictures that is used again once nobody holds its batch.

    Fresh memory costs a page fault for every 4 KiB, at 64x64 a tenth of decoding.
    """

    def __init__(self, keep: int) -> None:
        self._keep = keep
        self._free: list[Image8] = []

    def take(self, shape: tuple[int, ...]) -> Image8:
        """An array whose memory comes back when *this object* is collected.

        A tensor made from it keeps it alive; numpy views of it do not.
        """
        size = math.prod(shape)
        try:
            memory = self._free.pop()
        except IndexError:
            memory = np.empty(size, np.uint8)
        if len(memory) < size:
            memory = np.empty(size, np.uint8)
        pictures: Image8 = memory[:size].reshape(shape)
        weakref.finalize(pictures, self._give_back, memory).atexit = False
        return pictures

    def _give_back(self, memory: Image8) -> None:
        if len(self._free) < self._keep:
            self._free.append(memory)


class Loader:
    """Batches of windows from one split.

    Args:
        store: the shards.
        split: ``train``, ``val`` or ``test``.
        batch_size: windows a step over all ranks.
        seed: of the order; with the epoch it decides everything.
        window: frames a window, T.
        stride: steps from one frame of a window to the next.
        rank: this process's place among ``world``.
        world: number of processes that share each step.
        workers: threads that decode beside the caller; 0 decodes in the caller.
        prefetch: batches kept ready.
        drop_last: leave out the windows that do not fill a step. Without it, the last step is
            smaller; if it has fewer windows than ranks, it is filled up from the epoch's
            beginning, so that every rank has one.
        recordings: only these recordings; all when None.
        vocabulary: names that ``Batch.action`` counts in; a recording's own ids when None.
        shuffle: False gives the order of the tars.
        pin_memory: hand out page-locked batches; needs an accelerator.

    Raises:
        ConfigError: sizes that do not fit together.
        DataError: the split is empty or has too few windows for one step, or an action of the
            recordings is not in the vocabulary.
    """

    def __init__(
        self,
        store: ShardStore,
        split: str,
        batch_size: int,
        seed: int = 0,
        window: int = 1,
        stride: int = 1,
        rank: int = 0,
        world: int = 1,
        workers: int = 1,
        prefetch: int = 4,
        drop_last: bool = True,
        recordings: Sequence[str] | None = None,
        vocabulary: Sequence[str] | None = None,
        shuffle: bool = True,
        pin_memory: bool = False,
    ) -> None:
        if min(batch_size, window, stride, world, prefetch) < 1 or workers < 0:
            raise ConfigError("loader: sizes must be positive")
        if not 0 <= rank < world:
            raise ConfigError(f"loader: rank {rank} is not among {world} ranks")
        if batch_size < world:
            raise ConfigError(f"loader: batch_size {batch_size} is less than {world} ranks")
        self.store, self.split, self.batch_size, self.seed = store, split, batch_size, seed
        self.window, self.stride = window, stride
        self.rank, self.world = rank, world
        self.workers, self.prefetch = workers, prefetch
        self.drop_last, self.shuffle, self.pin_memory = drop_last, shuffle, pin_memory
        self.starts = window_starts(store, store.rows(split, recordings), window, stride)
        self._depth = max(prefetch, workers)
        self._buffers = _Buffers(keep=self._depth + 2)  # and one at the caller, one in the making
        self._action = store.actions(vocabulary, recordings)
        self._reward = store.table["reward"].to_numpy()
        self._done = store.table["done"].to_numpy(zero_copy_only=False)
        self._episode = store.table["episode"].to_numpy()
        self._step = store.table["step"].to_numpy()
        if len(self) == 0:
            raise DataError(
                f"{store.folder}: the split {split} has {len(self.starts)} windows of {window} "
                f"frames, too few for a batch of {batch_size}"
            )

    def __len__(self) -> int:
        """Steps an epoch, the same on every rank."""
        full, rest = divmod(len(self.starts), self.batch_size)
        return full if self.drop_last or not rest else full + 1

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from ``start_step`` on.

        Closing the iterator, or leaving it to be collected, ends its threads.

        Raises:
            ConfigError: ``start_step`` lies outside the epoch.
            DataError: a damaged shard, at the batch that meets it.
        """
        if epoch < 0 or not 0 <= start_step <= len(self):
            raise ConfigError(f"loader: no step {start_step} in an epoch of {len(self)} steps")
        order = epoch_order(len(self.starts), self.seed, epoch) if self.shuffle else None
        steps = range(start_step, len(self))
        if self.workers == 0:
            return (self.load(self.rows_of(step, order)) for step in steps)
        return self._ahead(steps, order)

    def _ahead(self, steps: range, order: Rows | None) -> Iterator[Batch]:
        waiting: deque[Future[Batch]] = deque()
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="loader")
        try:
            for step in steps:
                waiting.append(pool.submit(self.load, self.rows_of(step, order)))
                if len(waiting) > self._depth:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def rows_of(self, step: int, order: Rows | None = None) -> Rows:
        """Row ids of this rank's part of a step, [B, T].

        Args:
            step: of the epoch.
            order: :func:`epoch_order` of the epoch; the order of the tars when None.
        """
        begin = step * self.batch_size
        places = np.arange(begin, min(begin + self.batch_size, len(self.starts)))
        if (short := self.world - len(places)) > 0:
            places = np.concatenate([places, np.arange(short) % len(self.starts)])
        ends = len(places) * np.arange(self.world + 1) // self.world
        mine = places[ends[self.rank] : ends[self.rank + 1]]
        first = self.starts[mine if order is None else order[mine]]
        rows: Rows = first[:, None] + self.stride * np.arange(self.window)
        return rows

    def load(self, rows: Rows) -> Batch:
        """Read and decode windows.

        Args:
            rows: row ids [B, T].

        Raises:
            DataError: a damaged or missing shard; names the shard and the key.
        """
        store, first = self.store, rows[:, 0]
        images = self._buffers.take((*rows.shape, *store.image_shape))
        store.decode(rows.reshape(-1), images.reshape(-1, *store.image_shape))
        vectors = store.action_vectors
        batch = Batch(
            images=torch.from_numpy(images).permute(0, 1, 4, 2, 3),
            action=torch.from_numpy(self._action[rows]),
            reward=torch.from_numpy(self._reward[rows]),
            done=torch.from_numpy(self._done[rows]),
            recording=torch.from_numpy(store.recording_ids[first].astype(np.int64)),
            episode=torch.from_numpy(self._episode[first].astype(np.int64)),
            step=torch.from_numpy(self._step[first].astype(np.int64)),
            keys=store.keys(first),
            action_vector=None if vectors is None else torch.from_numpy(vectors[rows]),
        )
        return batch.pin_memory() if self.pin_memory else batch

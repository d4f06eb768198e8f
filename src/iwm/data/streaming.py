"""Streaming the shards from object storage with webdataset's own reader.

For data that does not fit on local disks. It reads tars from front to back, so it is less
than :class:`iwm.data.loader.Loader` in three ways: the order is a shuffle of tars and of a
buffer, not of the whole split; a run resumes at the start of an epoch, not at a step; and the
ranks' shares differ by up to one tar, so ranks may run out at different steps.

A tar from outside is not trusted. Members that readers like to unpickle and URLs that run a
command (``pipe:``) are refused, and only the image and the JSON of a sample are ever parsed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import torch

from iwm.data.batch import Batch
from iwm.data.frames import EXTENSIONS, decoder
from iwm.data.shards import SHARDS_FILE, ShardSet, parse_shard_set
from iwm.errors import ConfigError, DataError

SCHEMES = ("", "file", "http", "https", "s3", "gs")
"""What a URL may begin with; ``""`` is a local path."""

PICKLE_EXTENSIONS = ("pyd", "pkl", "pickle", "pth", "pt", "npy", "npz")
"""Members whose usual decoders can run code; no shard of ours holds any."""

MAX_DESCRIPTION_BYTES = 16 << 20
"""Bound on the size of ``shards.json``."""


def check_url(url: str) -> None:
    """Refuse whatever is no plain location.

    Raises:
        ConfigError: the scheme is not among :data:`SCHEMES`, e.g. ``pipe:``.
    """
    scheme = urlsplit(url).scheme.lower()
    if scheme not in SCHEMES:
        known = ", ".join(name for name in SCHEMES if name)
        raise ConfigError(f"{url}: {scheme}: URLs are not opened; use a path or {known}")


def _open(url: str) -> Any:
    import fsspec

    check_url(url)
    try:
        return fsspec.open(url, "rb").open()
    except (OSError, ImportError, ValueError) as error:
        raise DataError(f"{url}: {' '.join(str(error).split()) or type(error).__name__}") from None


def read_remote_shard_set(base_url: str) -> ShardSet:
    """``shards.json`` of a folder of shards, wherever it is.

    Raises:
        ConfigError: a URL that is not opened.
        DataError: not there, not JSON, a wrong field, or newer than this software.
    """
    url = f"{base_url.rstrip('/')}/{SHARDS_FILE}"
    with _open(url) as stream:
        text = stream.read(MAX_DESCRIPTION_BYTES + 1)
    if len(text) > MAX_DESCRIPTION_BYTES:
        raise DataError(f"{url}: over {MAX_DESCRIPTION_BYTES} bytes")
    try:
        values = json.loads(text)
    except ValueError as error:
        raise DataError(f"{url}: not JSON: {error}") from None
    return parse_shard_set(values, url)


class StreamingLoader:
    """Batches of single frames (T = 1) from a split, streamed.

    Args:
        base_url: folder of the shards: a path, or http(s), s3 or gs.
        split: ``train``, ``val`` or ``test``.
        batch_size: frames a batch on this rank.
        seed: of the order of tars and of the shuffle buffer.
        rank: this process's place among ``world``.
        world: number of processes; there must be as many tars.
        buffer: samples held back to shuffle among; 0 keeps the order.

    Raises:
        ConfigError: a URL that is not opened, sizes that do not fit.
        DataError: no shards there, or fewer tars than ranks.
    """

    def __init__(
        self,
        base_url: str,
        split: str,
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        buffer: int = 1024,
    ) -> None:
        if batch_size < 1 or buffer < 0 or not 0 <= rank < world:
            raise ConfigError("streaming: batch size, buffer or rank out of range")
        self.info = read_remote_shard_set(base_url)
        self.batch_size, self.seed, self.buffer = batch_size, seed, buffer
        names = [file.name for file in self.info.shards if file.split == split]
        for name in names:
            if "/" in name or name.startswith("."):
                raise DataError(f"{name!r}: a shard stands beside shards.json, nowhere else")
        if len(names) < world:
            raise DataError(f"{base_url}: split {split} has {len(names)} tars for {world} ranks")
        self.urls = [f"{base_url.rstrip('/')}/{name}" for name in names]
        self.rank, self.world = rank, world
        self._recordings = {name: place for place, name in enumerate(sorted(self.info.recordings))}

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """The batches of an epoch; the last is dropped if it is not full.

        Raises:
            DataError: a tar that is missing, damaged or holds what no shard of ours holds.
        """
        random = np.random.default_rng((self.seed, epoch))
        order = random.permutation(len(self.urls)) if self.buffer else range(len(self.urls))
        urls = [self.urls[place] for place in order][self.rank :: self.world]
        waiting: list[dict[str, Any]] = []
        for sample in self._shuffled(_samples(urls), random):
            waiting.append(sample)
            if len(waiting) == self.batch_size:
                yield self._collate(waiting)
                waiting = []

    def _shuffled(
        self, samples: Iterator[dict[str, Any]], random: np.random.Generator
    ) -> Iterator[dict[str, Any]]:
        held: list[dict[str, Any]] = []
        for sample in samples:
            if len(held) < self.buffer:
                held.append(sample)
                continue
            if held:
                place = int(random.integers(len(held)))
                sample, held[place] = held[place], sample
            yield sample
        yield from (held[place] for place in random.permutation(len(held)))

    def _collate(self, samples: list[dict[str, Any]]) -> Batch:
        info, extension = self.info, EXTENSIONS[self.info.format]
        decode = decoder(info.format, (info.height, info.width, 3))
        images = np.empty((len(samples), 1, info.height, info.width, 3), np.uint8)
        steps: list[dict[str, Any]] = []
        for place, sample in enumerate(samples):
            where = f"{sample['__url__']}: {sample['__key__']}"
            try:
                decode(sample[extension], images[place, 0])
                step = json.loads(sample["json"])
                self._recordings[step["recording"]]
            except KeyError as error:
                raise DataError(f"{where}: has no {error}") from None
            except ValueError as error:
                raise DataError(f"{where}: damaged sample: {error}") from None
            steps.append(step)

        def column(name: str, kind: torch.dtype) -> torch.Tensor:
            return torch.tensor([step[name] for step in steps], dtype=kind)

        vectors = None
        if width := max(item.action_dim for item in info.recordings.values()):
            padded = [[*(step.get("action_vector") or ()), *([0.0] * width)] for step in steps]
            vectors = torch.tensor([[row[:width]] for row in padded], dtype=torch.float32)
        return Batch(
            images=torch.from_numpy(images).permute(0, 1, 4, 2, 3),
            action=column("action", torch.int64)[:, None],
            reward=column("reward", torch.float32)[:, None],
            done=column("done", torch.bool)[:, None],
            recording=torch.tensor([self._recordings[step["recording"]] for step in steps]),
            episode=column("episode", torch.int64),
            step=column("step", torch.int64),
            keys=[str(sample["__key__"]) for sample in samples],
            action_vector=vectors,
        )


def _samples(urls: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Samples of tars as webdataset groups them, their members still encoded."""
    from webdataset.tariterators import group_by_keys, tar_file_expander

    sources = ({"url": url, "stream": _open(url)} for url in urls)
    group: Callable[..., Iterator[dict[str, Any]]] = group_by_keys
    samples = group(_checked_members(tar_file_expander(sources)))
    while True:
        try:
            sample = next(samples, None)
        except DataError:
            raise
        except Exception as error:
            # webdataset passes on whatever the stream or the tar raised, its place appended.
            raise DataError(f"streaming: {' '.join(str(error).split())}") from None
        if sample is None:
            return
        yield sample


def _checked_members(members: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for member in members:
        name = str(member.get("fname", ""))
        if name.rpartition(".")[2].lower() in PICKLE_EXTENSIONS:
            raise DataError(f"{member['__url__']}: {name}: members of this kind are refused")
        yield member

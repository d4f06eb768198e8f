"""Frames per second from the engine to the batch, each beside its limit.

    python -m benchmarks.data [--frames 2000] [--repeats 5] [--json FILE]

Every figure stands beside the bare loop that does the least which could give the same result,
measured in the same run, in turns, median of ``--repeats``. Everything runs on one core:
one process or, for the loader, one decoding thread with an idle caller. It records its own
data (ViZDoom, 160x120) in a temporary folder.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr
from dataclasses import asdict, dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np

from iwm.data.config import ShardConfig
from iwm.data.frames import decoder, encode_frame, resize_frame
from iwm.data.loader import Loader
from iwm.data.reader import ShardStore
from iwm.data.shards import write_shards
from iwm.gameplay.config import IngestConfig, RecordConfig, RecordPlan
from iwm.gameplay.executor import process_pool
from iwm.gameplay.ingest import ingest
from iwm.gameplay.quality import frame_statistics, perceptual_hashes
from iwm.gameplay.record import record
from iwm.gameplay.sources import open_source

BATCH = 128
SHARDS = ShardConfig(workers=1)
INGEST = IngestConfig(executor="serial", workers=1)


@dataclass(frozen=True)
class Row:
    """One comparison: a rate, its limit's rate, and the goal for their ratio."""

    what: str
    rate: float
    limit: str
    limit_rate: float
    goal: float | None = None

    @property
    def ratio(self) -> float:
        """Share of the limit that is reached."""
        return self.rate / self.limit_rate

    @property
    def verdict(self) -> str:
        """``pass`` or ``miss``, or nothing where there is no goal."""
        if self.goal is None:
            return ""
        return "pass" if self.ratio >= self.goal else "miss"


def rates(subjects: dict[str, Callable[[], int]], repeats: int) -> dict[str, float]:
    """Median rate of each subject, measured in turns; a subject returns how many it did."""
    found: dict[str, list[float]] = {name: [] for name in subjects}
    for turn in range(repeats + 1):
        for name, subject in subjects.items():
            started = time.perf_counter()
            with redirect_stderr(StringIO()):
                count = subject()
            if turn:  # the first turn fills caches and imports modules
                found[name].append(count / (time.perf_counter() - started))
        print(f"  turn {turn}/{repeats}: {', '.join(subjects)}", file=sys.stderr)
    return {name: statistics.median(values) for name, values in found.items()}


def play(plan: RecordPlan, seed: int) -> int:
    """The engine alone: step and copy the picture, keep nothing."""
    source = open_source(plan)
    random = np.random.default_rng(seed)
    frames = episode_steps = 0
    try:
        source.reset(seed)
        frames = episode_steps = 1
        while frames < plan.frames:
            outcome = source.step(int(random.integers(len(source.actions))))
            if outcome.done or episode_steps == plan.max_episode_steps:
                source.reset(seed + frames)
                episode_steps = 0
            frames += 1
            episode_steps += 1
    finally:
        source.close()
    return frames


def decoded(video: Path) -> Iterator[Any]:
    """Frames of a video as RGB arrays, by PyAV alone."""
    import av

    with av.open(str(video)) as container:
        container.streams.video[0].codec_context.thread_count = 1
        for frame in container.decode(video=0):
            yield frame.to_ndarray(format="rgb24")


def recording_rows(folder: Path, frames: int, repeats: int) -> Iterator[Row]:
    """Record: the recorder against the engine alone, each in a fresh process."""
    plan = RecordPlan(
        name="play", source="vizdoom", game="my_way_home", frames=frames, max_episode_steps=262
    )

    def recorder() -> int:
        shutil.rmtree(folder / "data", ignore_errors=True)
        return record(folder / "data", RecordConfig(plans=(plan,), workers=1)).frames

    def engine() -> int:
        with process_pool(1) as pool:
            return pool.submit(play, plan, 7).result()

    found = rates({"record": recorder, "engine": engine}, repeats)
    yield Row("record", found["record"], "engine alone", found["engine"])


def ingest_rows(folder: Path, repeats: int) -> Iterator[Row]:
    """Ingest: against decoding and the same statistics in a bare loop."""
    video = folder / "data" / "play" / "frames.mkv"

    def stage() -> int:
        shutil.rmtree(folder / "index", ignore_errors=True)
        return ingest(folder / "data", folder / "index", INGEST).frames

    def by_hand() -> int:
        figures = [frame_statistics(image) for image in decoded(video)]
        perceptual_hashes(np.stack([figure.thumbnail for figure in figures]))
        return len(figures)

    found = rates({"ingest": stage, "by hand": by_hand}, repeats)
    yield Row("ingest", found["ingest"], "decode + statistics by hand", found["by hand"], 0.70)


def shard_rows(folder: Path, repeats: int) -> Iterator[Row]:
    """Shard: against decoding, resizing and encoding in a bare loop."""
    video = folder / "data" / "play" / "frames.mkv"

    def stage() -> int:
        made = write_shards(folder / "data", folder / "index", folder / "shards", SHARDS)
        return sum(made.frames.values())

    def by_hand() -> int:
        images = [encode_frame(resize_frame(image, SHARDS), SHARDS) for image in decoded(video)]
        return len(images)

    found = rates({"shard": stage, "by hand": by_hand}, repeats)
    yield Row("shard", found["shard"], "decode + resize + encode by hand", found["by hand"])


def loader_rows(folder: Path, images: int, repeats: int) -> Iterator[Row]:
    """Loader: against raw JPEG decoding, raw reading and webdataset's reader."""
    import simplejpeg
    import webdataset

    store = ShardStore(folder / "shards")
    rows = store.rows("train")
    # In the caller's thread: one core against one core. Training decodes beside its loop.
    alone = Loader(store, "train", BATCH, drop_last=False, workers=0)
    beside = Loader(store, "train", BATCH, drop_last=False, workers=2)
    epochs = max(1, images // len(rows))
    encoded = store.read(rows)
    urls = [str(store.folder / file.name) for file in store.info.shards if file.split == "train"]

    def epochs_of(loader: Loader) -> int:
        return sum(len(batch) for epoch in range(epochs) for batch in loader.epoch(epoch))

    def decode() -> int:
        out = np.empty(store.image_shape, np.uint8)  # one for all: nothing is kept
        for _ in range(epochs):
            for data in encoded:
                simplejpeg.decode_jpeg(data, buffer=out)
        return epochs * len(encoded)

    def read() -> int:
        random = np.random.default_rng(0)
        return sum(len(store.read(random.permutation(rows))) for _ in range(epochs))

    decode_jpeg = decoder("jpeg", store.image_shape)

    def decode_member(data: bytes) -> Any:
        out = np.empty(store.image_shape, np.uint8)
        decode_jpeg(data, out)
        return out

    def streamed() -> int:
        count = 0
        for _ in range(epochs):
            dataset = (
                webdataset.WebDataset(urls, shardshuffle=False, empty_check=False)
                .shuffle(1000)
                .to_tuple("jpg", "json")
                .map_tuple(decode_member, json.loads)
                .batched(BATCH)
            )
            count += sum(len(batch[0]) for batch in dataset)
        return count

    subjects = {
        "loader": lambda: epochs_of(alone),
        "two threads": lambda: epochs_of(beside),
        "decode": decode,
        "read": read,
        "webdataset": streamed,
    }
    found = rates(subjects, repeats)
    yield Row("loader", found["loader"], "raw JPEG decode, one core", found["decode"], 0.85)
    yield Row("loader", found["loader"], "raw read", found["read"])
    yield Row("loader", found["loader"], "webdataset's reader", found["webdataset"], 1.0)
    yield Row("loader x2", found["two threads"], "raw JPEG decode, one core", found["decode"])


def main() -> None:
    """Measure, print the table, write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--frames", type=int, default=2000, help="frames to record")
    parser.add_argument("--images", type=int, default=20000, help="images a turn of the loader")
    parser.add_argument("--repeats", type=int, default=5, help="turns; the median counts")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="iwm-bench-") as name:
        folder = Path(name)
        measured = [
            *recording_rows(folder, options.frames, options.repeats),
            *ingest_rows(folder, options.repeats),
            *shard_rows(folder, options.repeats),
            *loader_rows(folder, options.images, options.repeats),
        ]
    print(f"{'':8}{'per s':>10}  {'limit':34}{'per s':>10}{'ratio':>8}{'goal':>8}")
    for row in measured:
        goal = "" if row.goal is None else f"{row.goal:.2f}"
        print(
            f"{row.what:8}{row.rate:10,.0f}  {row.limit:34}{row.limit_rate:10,.0f}"
            f"{row.ratio:8.2f}{goal:>8} {row.verdict}"
        )
    if options.json:
        from iwm.files import write_json

        figures = [{**asdict(row), "ratio": row.ratio, "verdict": row.verdict} for row in measured]
        write_json(options.json, figures)


if __name__ == "__main__":
    main()

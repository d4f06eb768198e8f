"""A day of gameplay at the level of the index: does validation, and the plan of the shards, fit?

    python -m benchmarks.scale [--hours 24] [--recordings 24] [--json FILE]

Writes an index of ``hours`` at 30 frames/s (2.6 million rows a day) with the columns, splits and
repeats that real play has, and no pictures. Then runs, each in a process of its own, `iwm validate`
and the planning part of `iwm shard` (reading the usable rows, the revision that names them, what
``shards.json`` says, one task a thousand frames), and prints seconds and peak memory beside the
bounds of 5 minutes and 2 GB together.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from iwm.files import write_json
from iwm.gameplay.config import IngestConfig
from iwm.gameplay.index import (
    FRAMES_FOLDER,
    INDEX_SCHEMA,
    QUARANTINE_FILE,
    QUARANTINE_SCHEMA,
    RECORDINGS_FILE,
    described,
    split_counts,
)
from iwm.gameplay.schema import NO_ACTION, Recording
from iwm.gameplay.splits import split_of
from iwm.progress import Progress
from iwm.settings import to_dict

FPS = 30.0
EPISODE_STEPS = 900
ACTIONS = ("noop", "forward", "left", "right", "use")
MAX_SECONDS, MAX_GB = 300.0, 2.0


def write_index(folder: Path, hours: float, recordings: int, seed: int = 0) -> int:
    """An index as ingestion leaves it; returns its number of rows."""
    frames = int(hours * 3600 * FPS) // recordings
    (folder / FRAMES_FOLDER).mkdir(parents=True)
    facts: dict[str, Any] = {}
    counts: dict[str, Any] = {}
    with Progress("index", frames * recordings, "rows") as progress:
        for number in range(recordings):
            name = f"session_{number:03d}"
            table = _rows(name, frames, np.random.default_rng([seed, number]))
            pq.write_table(table, folder / FRAMES_FOLDER / f"{name}.parquet", compression="zstd")
            facts[name] = to_dict(_recording(name))
            counts[name] = split_counts(table)
            progress.advance(frames)
    aside = QUARANTINE_SCHEMA.empty_table()
    pq.write_table(aside, folder / QUARANTINE_FILE)
    write_json(folder / RECORDINGS_FILE, described(facts, counts, aside))
    return frames * recordings


def _recording(name: str) -> Recording:
    return Recording(
        name=name,
        source="video",
        game="a long day",
        fps=FPS,
        width=1280,
        height=720,
        actions=ACTIONS,
        licence="CC0-1.0",
    )


def _rows(name: str, frames: int, random: np.random.Generator) -> pa.Table:
    place = np.arange(frames)
    episode, step = place // EPISODE_STEPS, place % EPISODE_STEPS
    last = (step == EPISODE_STEPS - 1) | (place == frames - 1)
    # Every twentieth picture stands still; every fiftieth is one that all sessions share.
    picture = np.where(place % 20 == 1, place - 1, place)
    shared = place % 50 == 7
    hashes = random.integers(0, 2**63, frames, dtype=np.uint64)[picture]
    hashes[shared] = place[shared].astype(np.uint64) % 1000
    digests = np.zeros((frames, 20), np.uint8)
    digests[:, :8] = hashes.view(np.uint8).reshape(-1, 8)
    splits = {number: split_of(name, int(number), IngestConfig().split) for number in set(episode)}
    columns = {
        "key": [f"{name}/{e:06d}/{s:06d}" for e, s in zip(episode, step, strict=True)],
        "recording": [name] * frames,
        "episode": episode,
        "step": step,
        "time_s": place / FPS,
        "frame": place,
        "action": np.where(last, NO_ACTION, random.integers(0, len(ACTIONS), frames)),
        "action_vector": [None] * frames,
        "reward": np.zeros(frames),
        "done": last,
        "width": np.full(frames, 1280),
        "height": np.full(frames, 720),
        "luma_mean": random.uniform(20, 200, frames),
        "luma_std": random.uniform(5, 60, frames),
        "sharpness": random.uniform(10, 900, frames),
        "phash": hashes,
        "sha1": [row.tobytes() for row in digests],
        "status": ["ok"] * frames,
        "split": [splits[number] for number in episode],
    }
    return pa.table(columns, schema=INDEX_SCHEMA)


def validate(index: str) -> str:
    """What `iwm validate` does; how many expectations spoke."""
    from iwm.data.config import ValidateConfig
    from iwm.data.expectations import validate_index

    report = validate_index(Path(index), ValidateConfig(max_duplicate_share=1.0), None)
    held = sum(1 for finding in report.findings if finding.success)
    return f"{held} of {len(report.findings)} expectations hold"


def plan(index: str) -> str:
    """What `iwm shard` does before it encodes the first frame."""
    from iwm.data.config import ShardConfig
    from iwm.data.shard_plan import count_frames, data_revision, encoding_tasks, read_usable_frames

    table = read_usable_frames(Path(index))
    revision = data_revision(table)
    frames, episodes = count_frames(table)
    names = table["recording"].unique().to_pylist()
    made = {name: _recording(name) for name in names}
    tasks = sum(1 for _ in encoding_tasks(Path(), table, made, ShardConfig()))
    return f"{frames} frames, {sum(episodes.values())} episodes, {tasks} tasks, {revision[:12]}"


def _measured(work: str, index: str, out: Any) -> None:
    started = time.perf_counter()
    said = {"validate": validate, "plan": plan}[work](index)
    seconds, processor = time.perf_counter() - started, time.process_time()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    out.put(
        {
            "seconds": round(seconds, 1),
            "processor_s": round(processor, 1),
            "peak_gb": round(peak, 2),
            "said": said,
        }
    )


def main() -> None:
    """Write the index, run both parts, print what they took."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--hours", type=float, default=24.0)
    parser.add_argument("--recordings", type=int, default=24)
    parser.add_argument("--json", type=Path, help="also write the figures there")
    arguments = parser.parse_args()
    figures: dict[str, Any] = {}
    processes = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="iwm-scale-") as scratch:
        index = Path(scratch) / "index"
        rows = write_index(index, arguments.hours, arguments.recordings)
        print(f"{rows:,} rows of {arguments.hours:g} hours at {FPS:g} frames/s")
        for work in ("validate", "plan"):
            out = processes.Queue()
            process = processes.Process(target=_measured, args=(work, str(index), out))
            process.start()
            figures[work] = out.get()
            process.join()
            one = figures[work]
            print(
                f"{work:9} {one['seconds']:7.1f} s {one['peak_gb']:6.2f} GB   {one['said']}; "
                f"{one['processor_s']:.1f} s of processor"
            )
    seconds = sum(one["seconds"] for one in figures.values())
    peak = max(one["peak_gb"] for one in figures.values())
    good = seconds <= MAX_SECONDS and peak <= MAX_GB
    print(f"together  {seconds:7.1f} s {peak:6.2f} GB   {'pass' if good else 'MISSED'}"
          f" ({MAX_SECONDS:g} s, {MAX_GB:g} GB)")  # fmt: skip
    if arguments.json:
        write_json(arguments.json, {"rows": rows, **figures})
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()

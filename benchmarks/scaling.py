"""What 1 TB and 100 TB of gameplay take, computed from rates measured on this machine.

    python -m benchmarks.scaling [--recording FOLDER] [--profiles cpu gpu] [--terabytes 1 100]
        [--workers 1 16 64 256] [--samples-per-second PROFILE=RATE ...] [--json FILE]

Measures, on one core each and in this run: bytes a frame of a recording (your own with
``--recording``, else 2,000 frames of ViZDoom at 160x120, lossless), of its index and of the shards
of each profile; frames/s of ingestion, of encoding and of the one process that writes the tars;
memory a frame of the plan of the shards; samples/s of training the profile's core phase. Then
prints, for so many bytes of recordings:

* storage: index and shards;
* hours of ingestion and of sharding by so many workers, each as fast as the one measured, bounded
  by the one writer that each dataset has. That workers add up is an assumption; the gain of two
  processes over one on this machine is printed beside it;
* epochs a day of one device. ``--samples-per-second`` gives the rate of a device that is not here,
  e.g. what `python -m benchmarks.training --profiles gpu` printed on it; without it, the rate is
  this machine's, by name. No rate is taken from anywhere else.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass, replace
from io import StringIO
from pathlib import Path
from typing import Any

from iwm.config import Params, resolve_profile
from iwm.data.config import ShardConfig
from iwm.data.frames import encode_frames
from iwm.data.shard_plan import encoding_tasks, read_usable_frames
from iwm.data.shards import pack, write_shards
from iwm.files import write_json
from iwm.gameplay.config import IngestConfig, RecordConfig, RecordPlan
from iwm.gameplay.executor import process_pool
from iwm.gameplay.ingest import ingest
from iwm.gameplay.measure import measure
from iwm.gameplay.reader import read_steps
from iwm.gameplay.record import record
from iwm.gameplay.schema import Recording, read_recording
from iwm.settings import parse

TERA = 1e12
PLANS_GB = 64.0
"""Memory of the machine that plans the shards, for the largest dataset."""


@dataclass(frozen=True)
class Rates:
    """What was measured of the data path; the frames are those of one recording."""

    what: str
    frames: int
    raw_bytes: float
    """Of a recorded frame."""
    index_bytes: float
    ingest: float
    """Frames/s of one worker."""
    two_workers: float
    """Frames/s of ingestion by two processes over that by one."""
    plan_bytes: float
    """Memory of the process that plans the shards, a frame."""


@dataclass(frozen=True)
class ProfileRates:
    """What was measured of one profile."""

    profile: str
    size: str
    shard_bytes: float
    encode: float
    """Frames/s of one worker: decoded, resized, encoded."""
    write: float
    """Frames/s of the one process that writes the tars, encoded frames given."""
    train: float | None
    """Samples/s of one device; ``None`` where it is neither measured nor given."""
    device: str


def rate(work: Callable[[], int], repeats: int) -> float:
    """Median of counts per second; the first turn, which imports modules, is left out."""
    found = []
    for turn in range(repeats + 1):
        began = time.perf_counter()
        with redirect_stderr(StringIO()), redirect_stdout(StringIO()):
            count = work()
        if turn:
            found.append(count / (time.perf_counter() - began))
    return statistics.median(found)


def size_of(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def make_data(folder: Path, recording: Path | None, frames: int) -> tuple[str, Path]:
    """A folder of one recording: the user's, or one played now; and what it is."""
    data = folder / "data"
    data.mkdir()
    if recording is not None:
        (data / recording.name).symlink_to(recording.resolve(), target_is_directory=True)
        described = read_recording(recording)
        return f"{described.width}x{described.height}, {described.game}", data
    plan = RecordPlan(
        name="play", source="vizdoom", game="my_way_home", frames=frames, max_episode_steps=262
    )
    with redirect_stderr(StringIO()):
        record(data, RecordConfig(plans=(plan,), workers=1))
    return f"{plan.width}x{plan.height} {plan.codec}, {plan.game}", data


def data_rates(what: str, data: Path, folder: Path, repeats: int) -> Rates:
    """Measure ingestion; leaves the index in ``folder / "index"``."""
    index = folder / "index"

    def work() -> int:
        shutil.rmtree(index, ignore_errors=True)
        return ingest(data, index, IngestConfig(executor="serial")).frames

    serial = rate(work, repeats)
    one, two = (pool_rate(data, workers, repeats) for workers in (1, 2))
    frames = read_usable_frames(index).num_rows
    return Rates(
        what=what,
        frames=frames,
        raw_bytes=size_of(data / next(data.iterdir()).name) / frames,
        index_bytes=size_of(index) / frames,
        ingest=serial,
        two_workers=two / one,
        plan_bytes=plan_memory(folder),
    )


def pool_rate(data: Path, workers: int, repeats: int) -> float:
    """Frames/s of what ingestion's workers do, by processes that run already."""
    folder = next(data.iterdir())
    described, frames = read_recording(folder), read_steps(folder)["frame"].to_numpy()
    parts = [frames[start : start + 250] for start in range(0, len(frames), 250)]
    pixels = IngestConfig().max_pixels
    with process_pool(workers) as pool:

        def work() -> int:
            done = [pool.submit(measure, str(folder), described, part, pixels) for part in parts]
            return sum(future.result().num_rows for future in done)

        return rate(work, repeats)


def plan_memory(folder: Path) -> float:
    """Bytes a frame of planning the shards: the slope between two indexes without pictures."""
    peaks = []
    hours = (1.0, 4.0)
    for number in hours:
        words = ["-m", "benchmarks.scaling", "--plan-of", str(folder / f"day-{number:g}")]
        done = subprocess.run(
            [sys.executable, *words, str(number)], capture_output=True, text=True, check=True
        )
        peaks.append([float(word) for word in done.stdout.split()])
    (rows_a, peak_a), (rows_b, peak_b) = peaks
    return (peak_b - peak_a) / (rows_b - rows_a)


def plan_of(folder: Path, hours: float) -> None:
    """Print the rows of an index of ``hours`` and the peak memory, in bytes, of its plan."""
    from benchmarks.scale import plan, write_index

    if not folder.exists():  # written apart from what is measured
        with redirect_stderr(StringIO()):
            rows = write_index(folder, hours, 1)
        words = ["-m", "benchmarks.scaling", "--plan-of", str(folder), str(hours)]
        done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=True)
        print(rows, done.stdout)
        return
    plan(str(folder))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def profile_rates(
    profile: str, data: Path, folder: Path, repeats: int, given: dict[str, float]
) -> ProfileRates:
    """Measure encoding, writing and training in one profile."""
    params = parse(Params, resolve_profile(profile, environ={}), profile)
    cfg = replace(params.shard, executor="serial", dask_address=None, workers=1)
    index, shards = folder / "index", folder / f"shards-{profile}"
    table = read_usable_frames(index)
    names = table["recording"].unique().to_pylist()
    recordings: dict[str, Recording] = {name: read_recording(data / name) for name in names}
    with redirect_stderr(StringIO()):
        write_shards(data, index, shards, cfg)
    tasks = list(encoding_tasks(data, table, recordings, cfg))
    encoded = [image for task in tasks for image in encode_frames(*task)]
    encode = rate(lambda: sum(len(encode_frames(*task)) for task in tasks), repeats)
    write = rate(
        lambda: sum(pack(folder / "packed", table, encoded, cfg, recordings).frames.values()),
        repeats,
    )
    trained: float | None
    if profile in given:
        trained, device = given[profile], "given"
    else:
        trained, device = training_rate(params, shards, folder, cfg)
    return ProfileRates(
        profile=profile,
        size=f"{cfg.width}x{cfg.height}",
        shard_bytes=size_of(shards) / table.num_rows,
        encode=encode,
        write=write,
        train=trained,
        device=device,
    )


def training_rate(
    params: Params, shards: Path, folder: Path, cfg: ShardConfig
) -> tuple[float | None, str]:
    """Samples/s of the profile's core phase by the real trainer, and on which device."""
    import torch

    from benchmarks.training import Laps
    from iwm.data.loader import Loader
    from iwm.data.reader import ShardStore
    from iwm.models.registry import create_model
    from iwm.training.distributed import Ranks, choose_device
    from iwm.training.trainer import Trainer

    device = choose_device("auto")
    if device.type == "cpu" and cfg.width > 64:
        return None, "not measured: no accelerator here"
    name = f"{torch.get_num_threads()} threads of this CPU"
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    phase = replace(params.train["core"], log_every=10, checkpoint_every=10**6, device=str(device))
    store = ShardStore(shards)
    settings = {**phase.model, "image_size": [cfg.height, cfg.width], "fit": store.info.fit}
    model = create_model(settings.pop("name"), **settings).to(device)
    tracker = Laps(time.perf_counter, 10 * phase.batch_size)
    run = Trainer(
        model,
        phase,
        Loader(store, "train", phase.batch_size, workers=phase.loader.workers),
        folder / f"model-{params.profile}",
        Ranks(0, 1, device),
        data_revision=store.info.revision,
        trackers=[tracker],
    )
    run.total = 40
    with redirect_stderr(StringIO()), redirect_stdout(StringIO()):
        run.fit()
    return statistics.median(tracker.rates[1:]), name  # the first lap fills caches


def lines(
    data: Rates,
    profiles: Sequence[ProfileRates],
    terabytes: Sequence[float],
    workers: Sequence[int],
) -> Iterator[str]:
    """The tables."""
    yield f"measured on {len(os.sched_getaffinity(0))} cores of {platform.machine()}: {data.what}"
    yield f"  recorded        {data.raw_bytes:10,.0f} bytes/frame"
    yield f"  index           {data.index_bytes:10,.0f} bytes/frame"
    yield f"  ingest          {data.ingest:10,.0f} frames/s a worker"
    yield f"  ingest x2       {data.two_workers:10.2f} times one process, by two on these cores"
    yield f"  plan of shards  {data.plan_bytes:10,.0f} bytes of memory a frame"
    for one in profiles:
        yield f"profile {one.profile}, {one.size}"
        yield f"  shards          {one.shard_bytes:10,.0f} bytes/frame"
        yield f"  encode          {one.encode:10,.0f} frames/s a worker"
        yield f"  write tars      {one.write:10,.0f} frames/s, one process"
        trained = "" if one.train is None else f"{one.train:10,.1f} samples/s, "
        yield f"  train core      {trained}{one.device}"
    most = PLANS_GB * 1e9 / data.plan_bytes
    yield f"one dataset holds {most:,.0f} frames where the plan has {PLANS_GB:g} GB of memory"
    for amount in terabytes:
        yield from _scaled(amount, most, data, profiles, workers)


def _scaled(
    amount: float,
    most: float,
    data: Rates,
    profiles: Sequence[ProfileRates],
    workers: Sequence[int],
) -> Iterator[str]:
    frames = amount * TERA / data.raw_bytes
    datasets = max(1, -int(-frames // most))
    yield ""
    yield (
        f"{amount:g} TB of such recordings: {frames:,.0f} frames, "
        f"{frames / 30 / 3600:,.0f} hours at 30 frames/s, "
        f"in {datasets:,} dataset(s); "
        f"index {frames * data.index_bytes / 1e9:,.0f} GB"
    )
    head = "".join(f"{count:>12,}" for count in workers)
    yield f"  {'hours by so many workers':34}{head}"
    yield f"  {'ingest':34}" + "".join(
        f"{frames / (data.ingest * count) / 3600:12,.1f}" for count in workers
    )
    for one in profiles:
        yield f"  {f'shard, {one.profile} ({one.size})':34}" + "".join(
            f"{frames / min(one.encode * count, one.write * datasets) / 3600:12,.1f}"
            for count in workers
        )
    for one in profiles:
        shards = frames * one.shard_bytes / TERA
        text = f"  {one.profile}: shards {shards:,.2f} TB"
        if one.train is not None:
            text += (
                f"; core at {one.train:,.1f} samples/s ({one.device}): "
                f"{one.train * 86400 / frames:.4g} epochs/day"
            )
        yield text


def _given(words: Sequence[str]) -> dict[str, float]:
    found = {}
    for word in words:
        name, _, number = word.partition("=")
        found[name] = float(number)
    return found


def main() -> None:
    """Measure, compute, print; write JSON if asked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--recording", type=Path, help="a recording of yours to measure on")
    parser.add_argument("--frames", type=int, default=2000, help="frames to record without it")
    parser.add_argument("--profiles", nargs="*", default=["cpu", "gpu"])
    parser.add_argument("--terabytes", nargs="*", type=float, default=[1.0, 100.0])
    parser.add_argument("--workers", nargs="*", type=int, default=[1, 16, 64, 256])
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument(
        "--samples-per-second", nargs="*", default=[], metavar="PROFILE=RATE",
        help="training rate of a device that is not here",
    )  # fmt: skip
    parser.add_argument("--json", type=Path, help="also write the rates there")
    parser.add_argument("--plan-of", nargs=2, metavar=("FOLDER", "HOURS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.plan_of:
        plan_of(Path(options.plan_of[0]), float(options.plan_of[1]))
        return
    given = _given(options.samples_per_second)
    with tempfile.TemporaryDirectory(prefix="iwm-scaling-") as name:
        folder = Path(name)
        what, data_folder = make_data(folder, options.recording, options.frames)
        data = data_rates(what, data_folder, folder, options.repeats)
        profiles = [
            profile_rates(profile, data_folder, folder, options.repeats, given)
            for profile in options.profiles
        ]
    for line in lines(data, profiles, options.terabytes, options.workers):
        print(line)
    if options.json:
        figures: dict[str, Any] = {**asdict(data), "profiles": [asdict(one) for one in profiles]}
        write_json(options.json, figures)


if __name__ == "__main__":
    main()

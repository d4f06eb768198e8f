"""Samples per second of the trainer, beside the least that could train the same modules.

    python -m benchmarks.training [--profiles smoke cpu gpu] [--turns 3] [--own-precision]
                                  [--json FILE]

For each profile, in turns within one process, medians of laps of steps:

* ``trainer``: the real trainer with the real loader, logs and statistics included;
* ``bare``: forward, backward and optimizer of the same modules on one synthetic batch;
* ``I-JEPA step``: an I-JEPA step (Assran et al., arXiv 2301.08243) of the same width, depth,
  tokens and batch, see :mod:`benchmarks.ijepa`, bare but for its moving target;
* ``bare, bf16``: what autocast makes of it on this processor; ``--own-precision`` leaves it
  out, since without bf16 arithmetic a step of the reference encoder (``gpu``) takes minutes.

FLOPs are counted by torch over one forward and backward; the peak is a large matmul's in the
same run, the faster of fp32 and bf16. On a machine that is busy with other work, ``--clock
process`` counts the processor seconds of this process, decoding included, and ``--clock thread``
those of the training thread alone (with ``OMP_NUM_THREADS=1``). Last, ``bare`` of ``smoke``
beside a busy process, with OpenMP's waiting threads spinning and asleep, each in a process of
its own.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass, replace
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.ijepa import IJEPA
from iwm.config import Params, resolve_profile
from iwm.data.config import ShardConfig
from iwm.data.loader import Loader
from iwm.data.reader import ShardStore
from iwm.data.shards import write_shards
from iwm.gameplay.config import IngestConfig, RecordConfig, RecordPlan
from iwm.gameplay.ingest import ingest
from iwm.gameplay.record import record
from iwm.models.registry import create_model
from iwm.settings import parse
from iwm.training.config import TrainConfig
from iwm.training.distributed import Ranks, choose_device
from iwm.training.optim import make_optimizer
from iwm.training.trainer import Trainer

GOAL = 0.95
CLOCKS: dict[str, Callable[[], float]] = {
    "wall": time.perf_counter,
    "process": time.process_time,
    "thread": time.thread_time,
}
# Processors train the reference encoder a few pictures at a time.
LARGE_BATCH = 4
PEAK_SIZE = 1024


@dataclass(frozen=True)
class Row:
    """One subject: samples/s, share of the peak's FLOP/s, and ratio to the bare step."""

    profile: str
    what: str
    rate: float
    utilisation: float
    ratio: float
    goal: float | None = None


class Laps:
    """A tracker that takes the time of each lap between two logs."""

    def __init__(self, clock: Callable[[], float], samples: int) -> None:
        self.clock, self.samples = clock, samples
        self.rates: list[float] = []

    def start(self, step: int, parameters: dict[str, Any]) -> None:  # noqa: ARG002
        """Begin."""
        self.last = self.clock()

    def log(self, step: int, metrics: dict[str, float]) -> None:  # noqa: ARG002
        """End a lap."""
        now = self.clock()
        self.rates.append(self.samples / (now - self.last))
        self.last = now

    def finish(self, status: str) -> None:
        """Nothing to close."""


def make_shards(folder: Path, size: int, frames: int) -> ShardStore:
    """The procedural world at one picture size."""
    plan = RecordPlan(
        name="sprites", source="procedural", game="sprites", frames=frames,
        frame_skip=1, width=size, height=size, max_episode_steps=60,
    )  # fmt: skip
    record(folder / "data", RecordConfig(plans=(plan,), workers=1))
    ingest(folder / "data", folder / "index", IngestConfig(executor="serial", workers=1))
    shape = ShardConfig(width=size, height=size, workers=1)
    write_shards(folder / "data", folder / "index", folder / "shards", shape)
    return ShardStore(folder / "shards")


def settings_of(profile: str, device: torch.device) -> tuple[TrainConfig, int, int]:
    """The profile's core phase, its picture size, and steps a lap."""
    params = parse(Params, resolve_profile(profile, environ={}), profile)
    config, size = params.train["core"], params.shard.height
    large = size > 64 and device.type == "cpu"
    # A lap ends with a log, whose statistics a run makes far more rarely than at every step.
    lap = 4 if large else 10
    changes: dict[str, Any] = {"log_every": lap, "checkpoint_every": 10**6, "device": str(device)}
    if large:
        changes |= {"batch_size": LARGE_BATCH, "precision": "fp32"}
    return replace(config, **changes), size, lap


def synthetic(batch: int, size: int, device: torch.device) -> Any:
    """What a model reads of a batch, made up."""

    class Frames:
        images = torch.randint(0, 256, (batch, 1, 3, size, size), dtype=torch.uint8, device=device)

    return Frames()


def wait_for(device: torch.device) -> None:
    """Let an accelerator finish what it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize()


def bare_steps(
    model: Any,
    config: TrainConfig,
    batch: Any,
    device: torch.device,
    precision: str,
    moving_target: bool = False,
) -> Callable[[], None]:
    """A function that takes one step: forward, backward, optimizer."""
    optimizer = make_optimizer(model, config.optim)
    count = itertools.count()

    def step() -> None:
        if hasattr(model, "before_step"):
            model.before_step(next(count), statistics=False)
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            loss, _ = model(batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if moving_target:
            model.after_step()

    return step


def laps_of(
    step: Callable[[], None], steps: int, laps: int, samples: int, clock: Callable[[], float],
    device: torch.device,
) -> list[float]:  # fmt: skip
    """Samples/s of each lap."""
    found = []
    for _ in range(laps):
        wait_for(device)
        began = clock()
        for _ in range(steps):
            step()
        wait_for(device)
        found.append(steps * samples / (clock() - began))
    return found


def peak(dtype: torch.dtype, clock: Callable[[], float], device: torch.device) -> float:
    """FLOP/s of a large matmul."""
    a = torch.randn(PEAK_SIZE, PEAK_SIZE, device=device, dtype=dtype)
    rates = laps_of(lambda: torch.mm(a, a), 3, 4, 2 * PEAK_SIZE**3, clock, device)  # type: ignore[arg-type, return-value]
    return statistics.median(rates)


def flops_of(step: Callable[[], None], batch: int) -> float:
    """FLOPs per sample of one step, attention and convolutions included."""
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops() / batch


def measure(
    profile: str,
    folder: Path,
    turns: int,
    laps: int,
    clock: Callable[[], float],
    both_precisions: bool = True,
) -> Iterator[Row]:
    """All subjects of one profile, in turns."""
    device = choose_device("auto")
    config, size, lap = settings_of(profile, device)
    batch = config.batch_size
    with redirect_stderr(StringIO()), redirect_stdout(StringIO()):
        store = make_shards(folder, size, frames=max(1500, 2 * batch))
    settings = {**config.model, "image_size": [size, size], "fit": store.info.fit}
    name = settings.pop("name")
    frames = synthetic(batch, size, device)

    def build() -> Any:
        torch.manual_seed(0)
        return create_model(name, **settings).to(device)

    model = build()
    ijepa = IJEPA(model.config).to(device)
    other = "bf16" if config.precision == "fp32" else "fp32"
    steps = {
        "bare": bare_steps(model, config, frames, device, config.precision),
        "I-JEPA step": bare_steps(ijepa, config, frames, device, config.precision, True),
    }
    if both_precisions:
        steps[f"bare, {other}"] = bare_steps(build(), config, frames, device, other)
    flops = {what: flops_of(step, batch) for what, step in steps.items()}
    flops["trainer"] = flops["bare"]
    rates: dict[str, list[float]] = {what: [] for what in ("trainer", *steps)}
    peaks: dict[torch.dtype, list[float]] = {torch.float32: [], torch.bfloat16: []}

    def trainer(turn: int) -> list[float]:
        loader = Loader(store, "train", batch, workers=config.loader.workers)
        tracker = Laps(clock, lap * batch)
        ranks = Ranks(0, 1, device)
        run = Trainer(
            build(), config, loader, folder / f"{turn}", ranks,
            data_revision=store.info.revision, trackers=[tracker],
        )  # fmt: skip
        run.total = lap * (laps + 1)
        run.fit()
        return tracker.rates[1:]  # the first lap fills caches

    for turn in range(turns):
        torch.use_deterministic_algorithms(False)
        with redirect_stderr(StringIO()), redirect_stdout(StringIO()):
            rates["trainer"] += trainer(turn)
        for what, step in steps.items():
            rates[what] += laps_of(step, lap, laps, batch, clock, device)
        for dtype, measured in peaks.items():
            measured.append(peak(dtype, clock, device))
        print(f"  {profile}: turn {turn + 1}/{turns}", file=sys.stderr)
    bare = statistics.median(rates["bare"])
    limit = max(statistics.median(measured) for measured in peaks.values())
    for what, found in rates.items():
        rate = statistics.median(found)
        yield Row(
            profile, what, rate, rate * flops[what] / limit, rate / bare,
            GOAL if what == "trainer" else None,
        )  # fmt: skip


def waiting(profile: str, laps: int) -> Iterator[Row]:
    """The bare step beside a busy process, in processes of their own: spinning, asleep."""
    rates = {}
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        for policy in ("ACTIVE", "PASSIVE"):
            done = subprocess.run(
                [sys.executable, "-m", "benchmarks.training", "--alone", profile, str(laps)],
                env={**os.environ, "OMP_WAIT_POLICY": policy},
                capture_output=True,
                text=True,
                check=True,
            )
            rates[policy] = float(done.stdout)
    finally:
        busy.kill()
        busy.wait()
    for policy, rate in rates.items():
        what = f"beside a busy process, OMP_WAIT_POLICY={policy}"
        yield Row(profile, what, rate, float("nan"), rate / rates["ACTIVE"])


def alone(profile: str, laps: int) -> None:
    """Print the rate of a profile's bare step."""
    device = torch.device("cpu")
    config, size, _ = settings_of(profile, device)
    model = create_model(**{**config.model, "image_size": [size, size]})
    frames = synthetic(config.batch_size, size, device)
    step = bare_steps(model, config, frames, device, config.precision)
    rates = laps_of(step, 5, laps + 1, config.batch_size, time.perf_counter, device)
    print(statistics.median(rates[1:]))


def main() -> None:
    """Measure, print the table, write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--profiles", nargs="*", default=["smoke", "cpu", "gpu"])
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--laps", type=int, default=3, help="laps a turn")
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument(
        "--own-precision", action="store_true", help="leave out the profile's other precision"
    )
    parser.add_argument("--json", type=Path, help="also write the figures there")
    parser.add_argument("--alone", nargs=2, metavar=("PROFILE", "LAPS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.alone:
        alone(options.alone[0], int(options.alone[1]))
        return
    rows: list[Row] = []
    for profile in options.profiles:
        with tempfile.TemporaryDirectory(prefix="iwm-bench-") as name:
            clock = CLOCKS[options.clock]
            both = not options.own_precision
            rows += measure(profile, Path(name), options.turns, options.laps, clock, both)
    if "smoke" in options.profiles and choose_device("auto").type == "cpu":
        rows += waiting("smoke", options.laps)
    print(f"{'':7}{'':44}{'samples/s':>10}{'of peak':>9}{'to bare':>9}{'goal':>6}")
    for row in rows:
        goal = "" if row.goal is None else f"{row.goal:6.2f} {_verdict(row)}"
        used = "" if row.utilisation != row.utilisation else f"{row.utilisation:.1%}"
        print(f"{row.profile:7}{row.what:44}{row.rate:10,.1f}{used:>9}{row.ratio:9.2f}{goal}")
    if options.json:
        from iwm.files import write_json

        figures = [asdict(row) for row in rows]
        for figure in figures:
            if figure["utilisation"] != figure["utilisation"]:
                figure["utilisation"] = None
        write_json(options.json, figures)


def _verdict(row: Row) -> str:
    return "pass" if row.goal is None or row.ratio >= row.goal else "miss"


if __name__ == "__main__":
    main()

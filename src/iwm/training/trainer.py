"""One trainer for every model that answers ``loss, logs = model(batch)``.

Every step's randomness is a function of (seed, step) alone (of dropout: of the rank too):
generators are seeded anew before each step. So a run that was killed at any moment goes on
from its last checkpoint to the same weights, bit for bit on a CPU.
"""

from __future__ import annotations

import hashlib
import math
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from iwm.errors import TrainingError
from iwm.files import TEMPORARY_PREFIX, read_json, write_json
from iwm.objectives.gather import Part
from iwm.progress import Progress
from iwm.settings import to_dict
from iwm.training.checkpoint import (
    checkpoints,
    damage,
    load_model,
    load_optimizer,
    optimizer_tensors,
    read_state,
    save_checkpoint,
    sha256,
)
from iwm.training.config import TrainConfig
from iwm.training.distributed import Ranks
from iwm.training.optim import learning_rate, make_optimizer
from iwm.training.parallel import collect, prepare, whole, whole_state
from iwm.training.tracking import HistoryTracker, Tracker, read_history

DONE_FILE = "training.json"
HISTORY_FILE = "history.jsonl"
WEIGHTS_FILE = "model.safetensors"
CHECKPOINTS = "checkpoints"

# What may change between runs without changing what is learned.
_IMMATERIAL = ("checkpoint_every", "log_every", "device", "loader", "sharding")
# Sources under iwm/ that decide it.
_LEARNING = (
    "data/augment.py",
    "data/batch.py",
    "data/frames.py",
    "data/loader.py",
    "data/masking.py",
    "data/reader.py",
    "data/trajectories.py",
    "models/**/*.py",
    "objectives/**/*.py",
    "training/**/*.py",
)


class Batches(Protocol):
    """A loader: batches of this rank, the same for the same (epoch, step)."""

    def __len__(self) -> int:
        """Steps per epoch."""

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Any]:
        """The epoch's batches from ``start_step`` on; each has ``to(device)`` and ``keys``."""


@dataclass(frozen=True)
class Summary:
    """How a training run ended: ``already_done`` when there was nothing to do."""

    steps: int
    metrics: dict[str, float]
    seconds: float
    samples_per_second: float
    already_done: bool = False


def identity(config: TrainConfig, data_revision: str) -> dict[str, Any]:
    """What a checkpoint belongs to: the configuration, the data and the code that learns."""
    values = {key: value for key, value in to_dict(config).items() if key not in _IMMATERIAL}
    return {"train": values, "data_revision": data_revision, "code": code_revision()}


def code_revision() -> str:
    """Hash of the sources that decide what is learned."""
    root = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for file in sorted({file for pattern in _LEARNING for file in root.glob(pattern)}):
        digest.update(f"{file.relative_to(root).as_posix()}\n".encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def difference(old: Any, new: Any, path: str = "") -> str | None:
    """The first place where two nested values differ, in words; ``None`` if nowhere."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            if found := difference(old.get(key), new.get(key), f"{path}.{key}".lstrip(".")):
                return found
        return None
    if isinstance(old, (list, tuple)) and isinstance(new, (list, tuple)):
        return None if list(old) == list(new) else f"{path} was {list(old)}, is {list(new)}"
    return None if old == new else f"{path} was {old!r}, is {new!r}"


class Trainer:
    """Trains one model to the end, or on from where it was stopped.

    Args:
        model: ``loss, logs = model(batch)``, ``before_step``, ``after_step``, ``blocks``,
            ``save_pretrained``; see :class:`iwm.models.iwm.IWM`. The loss and each log are
            such that their means over ranks are the global batch's.
        config: one entry of ``train``.
        batches: this rank's data.
        out: folder of the results: config.json, model.safetensors, training.json,
            history.jsonl, and checkpoints/ until the run is done.
        ranks: this process's place.
        data_revision: names the data; a checkpoint made on other data is not resumed.
        trackers: told what happens, beside history.jsonl.
        name: for messages, e.g. ``core``.
    """

    def __init__(
        self,
        model: nn.Module,
        config: TrainConfig,
        batches: Batches,
        out: Path,
        ranks: Ranks,
        *,
        data_revision: str,
        trackers: Sequence[Tracker] = (),
        name: str = "model",
    ) -> None:
        self.model, self.config, self.batches, self.out = model, config, batches, out
        self.ranks, self.name = ranks, name
        self.identity = identity(config, data_revision)
        self.trackers = [HistoryTracker(out / HISTORY_FILE), *trackers] if ranks.first else []
        self.total = config.epochs * len(batches)
        if config.max_steps is not None:
            self.total = min(self.total, config.max_steps)
        self._stop = 0
        self._saved = -1

    def already_done(self) -> Summary | None:
        """The summary of a finished run of exactly this configuration, if there is one."""
        path = self.out / DONE_FILE
        weights = self.out / WEIGHTS_FILE
        if not all(file.exists() for file in (path, weights, self.out / HISTORY_FILE)):
            return None
        try:
            done = read_json(path)
        except ValueError:
            return None
        if difference(done["identity"], _plain(self.identity)):
            return None
        found = sha256(weights)
        if done.get("weights_sha256", found) != found:
            print(f"train {self.name}: {weights} is not what training wrote; training anew")
            return None
        return Summary(done["steps"], done["metrics"], 0.0, done["samples_per_second"], True)

    def fit(self, extra: Callable[[], dict[str, Any]] = dict) -> Summary:
        """Train; write the model; return how it went.

        Args:
            extra: asked at the end for further plain values of training.json.

        Raises:
            TrainingError: the loss is not finite, or the process was asked to stop.
        """
        if (done := self.ranks.from_first(self.already_done)) is not None:
            return done
        self.model.train()
        start, saved = self.ranks.from_first(self._where_to_start)
        if saved is not None:
            load_model(saved, self.model)
        step_fn = prepare(self.model, self.config, self.ranks)
        optimizer = make_optimizer(self.model, self.config.optim)
        if saved is not None:
            load_optimizer(saved, self.model, optimizer)
        for tracker in self.trackers:
            tracker.start(start, self.identity)
        torch.use_deterministic_algorithms(self.config.deterministic, warn_only=True)
        status = "failed"
        try:
            with _stop_requests(self):
                summary = self._run(step_fn, optimizer, start)
            status = "done"
        except TrainingError:
            status = "stopped" if self._stop else "failed"
            raise
        finally:
            for tracker in self.trackers:
                tracker.finish(status)
        with whole_state(self.model, self.ranks):
            if self.ranks.first:
                self._release(summary, extra())
        self.ranks.barrier()
        return summary

    # -- the loop ----------------------------------------------------------------------

    def _run(self, step_fn: nn.Module, optimizer: torch.optim.Optimizer, start: int) -> Summary:
        c, per_epoch = self.config, len(self.batches)
        metrics = _last_metrics(self.out / HISTORY_FILE) if start == self.total else {}
        samples, began, step = 0, time.monotonic(), start
        lap_samples, lap_began = 0, began
        progress = Progress(
            f"train {self.name}", self.total * c.batch_size, "samples", initial=start * c.batch_size
        )
        with progress:
            while step < self.total:
                for batch in self.batches.epoch(step // per_epoch, step % per_epoch):
                    part, stop = self.ranks.meet(len(batch), self._stop)
                    if stop:
                        self._checkpoint(step, optimizer)
                        raise self._stopped(step, stop)
                    rate = learning_rate(step, self.total, c.optim)
                    logging = (step + 1) % c.log_every == 0 or step + 1 == self.total
                    loss, logs = self._step(step_fn, optimizer, batch, part, step, rate, logging)
                    step += 1
                    samples += part.total
                    lap_samples += part.total
                    if logging:
                        now = time.monotonic()
                        metrics = {"loss": loss, **self.ranks.mean(logs), "lr": rate}
                        metrics["epoch"] = step / per_epoch
                        metrics["samples_per_second"] = lap_samples / max(now - lap_began, 1e-9)
                        lap_samples, lap_began = 0, now
                        for tracker in self.trackers:
                            tracker.log(step, metrics)
                    progress.advance(part.total, f"loss {loss:.4f}")
                    if step % c.checkpoint_every == 0 or step == self.total:
                        self._checkpoint(step, optimizer)
                    if step == self.total:
                        break
        seconds = time.monotonic() - began
        return Summary(step, metrics, seconds, samples / seconds if samples else 0.0)

    def _step(
        self,
        step_fn: nn.Module,
        optimizer: torch.optim.Optimizer,
        batch: Any,
        part: Part,
        step: int,
        rate: float,
        logging: bool,
    ) -> tuple[float, dict[str, Tensor]]:
        """One step of the optimizer; the global batch's loss, and this rank's logs."""
        c, ranks = self.config, self.ranks
        seed = step_seed(c.seed, step)
        torch.manual_seed(seed + 7919 * ranks.rank)  # dropout: a stream of its own per rank
        self.model.before_step(seed, part, statistics=logging)  # type: ignore[operator]
        batch = batch.to(ranks.device, non_blocking=True)
        bf16 = c.precision == "bf16"
        with torch.autocast(ranks.device.type, torch.bfloat16, enabled=bf16):
            loss, logs = step_fn(batch)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        trained = [p for group in optimizer.param_groups for p in group["params"]]
        norm = whole(torch.nn.utils.clip_grad_norm_(trained, c.optim.grad_clip))
        # One look for all ranks, before the weights move: they go on or stop together.
        seen = ranks.mean({"loss": loss, "grad_norm": norm})
        if not all(math.isfinite(value) for value in seen.values()):
            raise TrainingError(self._not_finite(loss.item(), seen, step, batch))
        optimizer.step()
        self.model.after_step((step + 1) / self.total)  # type: ignore[operator]
        return seen["loss"], {**logs, "grad_norm": norm}

    def _stopped(self, step: int, stop: int) -> TrainingError:
        self._stop = stop
        return TrainingError(
            f"train {self.name}: stopped at step {step} of {self.total} by "
            f"{signal.Signals(stop).name}; run it again to go on from there"
        )

    def _not_finite(self, loss: float, seen: dict[str, float], step: int, batch: Any) -> str:
        """What stopped the run, in the same words in every rank."""
        what, value = "loss", seen["loss"]
        if math.isfinite(value):
            what, value = "norm of the gradient", seen["grad_norm"]
        held = self.ranks.from_all((math.isfinite(loss), list(getattr(batch, "keys", []))))
        suspects = [keys for finite, keys in held if not finite] or [keys for _, keys in held]
        keys = [key for part in suspects for key in part]
        shown = ", ".join(keys[:4]) + (f" and {len(keys) - 4} more" if len(keys) > 4 else "")
        saved = checkpoints(self.out / CHECKPOINTS)
        return (
            f"train {self.name}: {what} is {value} at step {step}; last good checkpoint: "
            f"{saved[-1] if saved else 'none'}; batch: {shown}"
        )

    # -- files -------------------------------------------------------------------------

    def _checkpoint(self, step: int, optimizer: torch.optim.Optimizer) -> None:
        if step == self._saved:
            return
        model = collect(self.model.state_dict(), self.ranks)
        state = collect(optimizer_tensors(self.model, optimizer), self.ranks)
        if self.ranks.first:
            folder, identity = self.out / CHECKPOINTS, {"identity": self.identity}
            save_checkpoint(folder, step, model, state, identity)
        self._saved = step
        self.ranks.barrier()

    def _where_to_start(self) -> tuple[int, Path | None]:
        """Steps taken, and the checkpoint to go on from; clears the folder without one."""
        for left in self.out.glob(f"{TEMPORARY_PREFIX}*"):  # by a kill while it was written
            left.unlink()
        for saved in reversed(checkpoints(self.out / CHECKPOINTS)):
            if fault := damage(saved):
                print(f"train {self.name}: {saved} is damaged and passed over: {fault}")
                continue
            state = read_state(saved)
            changed = difference(state["identity"], _plain(self.identity))
            if changed is None:
                print(f"train {self.name}: going on from step {state['step']} of {self.total}")
                return int(state["step"]), saved
            print(f"train {self.name}: starting anew, not from {saved.name}: {changed}")
            break
        self._clear()
        return 0, None

    def _clear(self) -> None:
        """Remove an earlier run's results, so that nothing of it passes for this one's."""
        self.out.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(self.out / CHECKPOINTS, ignore_errors=True)
        for name in (DONE_FILE, "config.json", WEIGHTS_FILE):
            (self.out / name).unlink(missing_ok=True)

    def _release(self, summary: Summary, extra: dict[str, Any]) -> None:
        self.model.save_pretrained(self.out)  # type: ignore[operator]
        write_json(
            self.out / DONE_FILE,
            {
                **extra,
                "status": "done",
                "weights_sha256": sha256(self.out / WEIGHTS_FILE),
                "identity": self.identity,
                "steps": summary.steps,
                "metrics": summary.metrics,
                "seconds": round(summary.seconds, 3),
                "samples_per_second": round(summary.samples_per_second, 1),
            },
        )
        shutil.rmtree(self.out / CHECKPOINTS, ignore_errors=True)

    def request_stop(self, number: int) -> None:
        """Save after the step in progress, then stop with an error (SIGTERM, Ctrl-C)."""
        self._stop = number


def step_seed(seed: int, step: int) -> int:
    """The seed of one step's randomness, the same on every rank."""
    return (seed * 1_000_003 + step) * 2_654_435_761 % 2**62


@contextmanager
def _stop_requests(trainer: Trainer) -> Iterator[None]:
    """Route SIGTERM and SIGINT to the trainer while it runs (main thread only)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, _: FrameType | None) -> None:
        trainer.request_stop(number)

    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _last_metrics(path: Path) -> dict[str, float]:
    """Of a run that had taken every step but was killed before its model was written."""
    history = read_history(path) if path.exists() else []
    return {key: value for key, value in history[-1].items() if key != "step"} if history else {}


def _plain(value: Any) -> Any:
    """As JSON gives it back: tuples are lists."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return value

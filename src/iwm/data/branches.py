"""Counterfactual sets on disk: states, and the true outcome of every action from each.

``artifacts/branches/<plan>/`` holds ``branches.json`` and one ``.npy`` file for each array
of :class:`BranchSet`. Frames have the size of the shards and went through the same resizing
and compression as training frames did. The same settings give the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, fields
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from iwm.data.config import ShardConfig
from iwm.data.frames import Image8, decoder, encode_frame, resize_frame
from iwm.errors import ConfigError, DataError
from iwm.files import atomic_directory, read_json, write_json
from iwm.gameplay.branch import BranchedState, branch_states
from iwm.gameplay.config import BranchConfig, RecordConfig, RecordPlan
from iwm.gameplay.executor import process_pool
from iwm.progress import Progress
from iwm.settings import parse, settings, to_dict
from iwm.versions import Format

BRANCHES = Format("branches", current=1)
BRANCHES_FILE = "branches.json"

VISIBLE_LEVELS = 16
"""Pixels that differ by more of 255 levels in some channel have visibly changed."""
VISIBLE_SHARE = 0.001
"""Pictures that differ in fewer pixels look the same: 4 pixels of 64x64."""

_POLL_S = 0.2


@settings
class _Meta:
    version: int = BRANCHES.current
    name: str
    source: str
    game: str
    seed: int
    vocabulary: tuple[str, ...]
    states: int


@dataclass(frozen=True)
class BranchSet:
    """N branched states of one game with A actions; H frames of context.

    Frames are uint8 RGB [..., h, w, 3]. Read with :meth:`load`; arrays are memory-mapped.
    """

    name: str
    """The plan's name, which is the recording's too."""
    source: str
    game: str
    seed: int
    vocabulary: tuple[str, ...]
    """The game's own action names: position = action."""
    frames: npt.NDArray[np.uint8]
    """[N, H, h, w, 3]: context, oldest first; the last is the state that was branched."""
    actions: npt.NDArray[np.int64]
    """[N, H-1]: taken between the frames."""
    outcomes: npt.NDArray[np.uint8]
    """[N, A, h, w, 3]: the true frame after each action; black where not ``valid``."""
    valid: npt.NDArray[np.bool_]
    """[N, A]: False where the game ended and showed nothing."""
    distinct: npt.NDArray[np.bool_]
    """[N, A, A]: the two actions' outcomes differ visibly (:func:`visible_share`)."""
    episode: npt.NDArray[np.int64]
    """[N]: states of one episode are not independent."""
    step: npt.NDArray[np.int64]
    """[N]: steps played before the state."""
    taken: npt.NDArray[np.int64]
    """[N]: the action that the policy took; always valid."""
    position: npt.NDArray[np.float64]
    """[N, 3]: x, y, angle in degrees, in the game's units; NaN where the game does not say."""
    removed: npt.NDArray[np.uint8]
    """[N, h, w, 3]: the outcome of ``taken`` with an object removed from the world."""
    has_removed: npt.NDArray[np.bool_]
    """[N]: an object was removed and the picture shows it."""
    teleported: npt.NDArray[np.uint8]
    """[N, h, w, 3]: the outcome of ``taken`` from elsewhere in the same level."""
    has_teleported: npt.NDArray[np.bool_]
    """[N]: there was somewhere else, and it looks different."""

    def __len__(self) -> int:
        """N."""
        return len(self.taken)

    @property
    def history(self) -> int:
        """H."""
        return int(self.frames.shape[1])

    def alike(self) -> npt.NDArray[np.float64]:
        """[N]: share of the valid outcomes that look like another valid outcome of the state."""
        valid = np.asarray(self.valid)
        same = ~self.distinct & valid[:, :, None] & valid[:, None, :]
        # Every outcome is like itself.
        twins = (same.sum(-1) > 1) & valid
        return np.asarray(twins.sum(1) / valid.sum(1), np.float64)

    def save(self, folder: Path) -> None:
        """Write the set; ``folder`` appears whole or not at all."""
        with atomic_directory(folder) as temporary:
            for name in _ARRAYS:
                np.save(temporary / f"{name}.npy", getattr(self, name), allow_pickle=False)
            meta = _Meta(
                name=self.name,
                source=self.source,
                game=self.game,
                seed=self.seed,
                vocabulary=self.vocabulary,
                states=len(self),
            )
            write_json(temporary / BRANCHES_FILE, to_dict(meta))

    @classmethod
    def load(cls, folder: str | Path) -> BranchSet:
        """Read a set; arrays are memory-mapped, read only.

        Raises:
            DataError: missing, damaged, or written by a newer version.
        """
        folder = Path(folder)
        path = folder / BRANCHES_FILE
        try:
            values = read_json(path)
            BRANCHES.check(values.get("version") if isinstance(values, dict) else None, path)
            meta = parse(_Meta, values, str(path))
        except FileNotFoundError:
            raise DataError(f"{path}: not found; run `iwm branch`") from None
        except (ValueError, ConfigError) as error:
            raise DataError(f"{path}: {' '.join(str(error).split())}") from None
        arrays: dict[str, Any] = {}
        for name in _ARRAYS:
            file = folder / f"{name}.npy"
            try:
                arrays[name] = np.load(file, mmap_mode="r", allow_pickle=False)
            except (OSError, ValueError, EOFError) as error:
                raise DataError(f"{file}: {' '.join(str(error).split())}") from None
            if len(arrays[name]) != meta.states:
                raise DataError(
                    f"{file}: holds {len(arrays[name])} states, {BRANCHES_FILE} says {meta.states}"
                )
        return cls(meta.name, meta.source, meta.game, meta.seed, meta.vocabulary, **arrays)


_ARRAYS = tuple(field.name for field in fields(BranchSet))[5:]


def load_branches(folder: str | Path) -> dict[str, BranchSet]:
    """Every set below a folder, by name.

    Raises:
        DataError: there is none, or one cannot be read.
    """
    sets = {
        path.parent.name: BranchSet.load(path.parent)
        for path in sorted(Path(folder).glob(f"[!.]*/{BRANCHES_FILE}"))
    }
    if not sets:
        raise DataError(f"{folder}: no counterfactual sets there; run `iwm branch`")
    return sets


def visible_share(one: Image8, other: Image8) -> float:
    """Share of pixels that differ by more than :data:`VISIBLE_LEVELS` in some channel."""
    difference = np.abs(one.astype(np.int16) - other).max(-1)
    return float((difference > VISIBLE_LEVELS).mean())


def differ(one: Image8, other: Image8) -> bool:
    """Whether a person would call the pictures different."""
    return visible_share(one, other) >= VISIBLE_SHARE


class _Frames:
    """Frames as training sees them: resized, compressed, decoded."""

    def __init__(self, shard: ShardConfig) -> None:
        self._shard = shard
        self.shape = (shard.height, shard.width, 3)
        self._decode = decoder(shard.format, self.shape)

    def __call__(self, frame: Image8) -> Image8:
        out = np.empty(self.shape, np.uint8)
        self._decode(encode_frame(resize_frame(frame, self._shard), self._shard), out)
        return out


def make_branch_set(
    plan: RecordPlan,
    states: int,
    config: BranchConfig,
    record_seed: int,
    shard: ShardConfig,
    advance: Callable[[int], object] = lambda _: None,
) -> BranchSet:
    """Play and branch one plan.

    Args:
        plan: the recording's plan.
        states: N.
        config: context, spacing and seed.
        record_seed: ``record.seed``, whose episodes are avoided.
        shard: size and compression of the frames.
        advance: called with the number of states newly branched.

    Raises:
        ConfigError: the plan does not fit its game.
        DataError: the game does not start, cannot branch, or its episodes are too short.
    """
    through = _Frames(shard)
    rows: list[dict[str, Any]] = []
    vocabulary: tuple[str, ...] = ()
    for state in branch_states(plan, states, config, record_seed):
        vocabulary = state.vocabulary
        rows.append(_row(state, through))
        advance(1)
    _settle_anomalies(rows, config.anomaly_share)
    columns = {name: np.stack([row[name] for row in rows]) for name in _ARRAYS}
    return BranchSet(plan.name, plan.source, plan.game, config.seed, vocabulary, **columns)


def _row(state: BranchedState, through: _Frames) -> dict[str, Any]:
    """One state's entry of every array."""
    black = np.zeros(through.shape, np.uint8)
    outcomes = [black if frame is None else through(frame) for frame in state.outcomes]
    count = len(outcomes)
    distinct = np.zeros((count, count), np.bool_)
    for one in range(count):
        for other in range(one):
            seen = differ(outcomes[one], outcomes[other])
            distinct[one, other] = distinct[other, one] = seen
    return {
        "frames": np.stack([through(frame) for frame in state.frames]),
        "actions": np.array(state.actions, np.int64),
        "outcomes": np.stack(outcomes),
        "valid": np.array([frame is not None for frame in state.outcomes]),
        "distinct": distinct,
        "episode": np.int64(state.episode),
        "step": np.int64(state.step),
        "taken": np.int64(state.taken),
        "position": np.array(state.position or (np.nan,) * 3),
        "removed": black if state.removed is None else through(state.removed),
        "has_removed": np.bool_(state.removed is not None),
        "teleported": black if state.teleported is None else through(state.teleported),
        "has_teleported": np.bool_(state.teleported is not None),
    }


def _settle_anomalies(rows: list[dict[str, Any]], share: float) -> None:
    """Teleport in time where the game could not in space; drop what does not show."""
    for row in rows:
        if not row["has_teleported"]:
            others = [other for other in rows if other["episode"] == row["episode"]]
            far = max(others, key=lambda other: abs(int(other["step"]) - int(row["step"])))
            row["teleported"] = far["outcomes"][far["taken"]]
    for row in rows:
        truth = row["outcomes"][row["taken"]]
        for name in ("removed", "teleported"):
            shows = visible_share(row[name], truth) >= share
            if name == "removed":
                shows = shows and bool(row["has_removed"])
            row[f"has_{name}"] = np.bool_(shows)
            if not shows:
                row[name] = np.zeros_like(truth)


_counter: Any = None
"""In a worker: the states branched by all workers, shared with the parent."""


def _set_counter(counter: Any) -> None:
    global _counter
    _counter = counter


def _count(states: int) -> None:
    with _counter.get_lock():
        _counter.value += states


def _make(
    folder: Path,
    plan: RecordPlan,
    states: int,
    config: BranchConfig,
    record_seed: int,
    shard: ShardConfig,
) -> None:
    """Make one set in a worker."""
    make_branch_set(plan, states, config, record_seed, shard, _count).save(folder)


def write_branches(
    out_dir: Path, record: RecordConfig, config: BranchConfig, shard: ShardConfig
) -> dict[str, BranchSet]:
    """Make every set that the configuration names, in parallel; all of them or none.

    Args:
        out_dir: made or replaced; one folder a plan.
        record: the plans, and the seed whose episodes are avoided.
        config: how many states of which plan.
        shard: size and compression of the frames.

    Returns:
        The sets, by plan.

    Raises:
        ConfigError: a name that is no plan, or a plan that does not fit its game.
        DataError: a game does not start, cannot branch, or its process died.
    """
    plans = {plan.name: plan for plan in record.plans}
    states = {entry.name: entry.states for entry in config.plans}
    unknown = [name for name in states if name not in plans]
    if unknown or not states or len(states) < len(config.plans):
        what = f"no plan {unknown[0]!r}" if unknown else "none, or one is named twice"
        raise ConfigError(f"branch.plans: {what}; record.plans has {', '.join(plans)}")
    counter = get_context("spawn").Value("q", 0)
    # The largest first, so that no process is left with a large one at the end.
    order = sorted(states, key=lambda name: -states[name])
    with (
        Progress("branch", sum(states.values()), "states") as progress,
        atomic_directory(out_dir) as folder,
        process_pool(min(config.workers, len(order)), _set_counter, (counter,)) as pool,
    ):
        waiting = {
            pool.submit(_make, folder / name, plans[name], states[name], config, record.seed, shard)
            for name in order
        }
        try:
            while waiting:
                done, waiting = wait(waiting, timeout=_POLL_S, return_when=FIRST_COMPLETED)
                progress.advance(counter.value - progress.done)
                for future in done:
                    future.result()
        except BrokenProcessPool:
            raise DataError("branch: a game's process died; see the lines above") from None
        finally:
            for future in waiting:
                future.cancel()
    return load_branches(out_dir)

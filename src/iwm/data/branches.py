"""Counterfactual sets on disk: states, and the true outcome of every action from each.

``artifacts/branches/<plan>/`` holds ``branches.json`` and one ``.npy`` file for each array
of :class:`BranchSet`. Frames have the size of the shards and went through the same resizing
and compression as training frames did. The same settings give the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from iwm.data.config import ShardConfig
from iwm.data.frames import Image8
from iwm.data.playsets import ShardFrames, count, load_set, save_set, write_sets
from iwm.errors import ConfigError, DataError
from iwm.gameplay.branch import BranchedState, branch_states
from iwm.gameplay.config import BranchConfig, RecordConfig, RecordPlan
from iwm.settings import settings
from iwm.versions import Format

BRANCHES = Format("branches", current=1)
BRANCHES_FILE = "branches.json"

VISIBLE_LEVELS = 16
"""Pixels that differ by more of 255 levels in some channel have visibly changed."""
VISIBLE_SHARE = 0.001
"""Pictures that differ in fewer pixels look the same: 4 pixels of 64x64."""


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
        meta = _Meta(
            name=self.name,
            source=self.source,
            game=self.game,
            seed=self.seed,
            vocabulary=self.vocabulary,
            states=len(self),
        )
        save_set(folder, BRANCHES_FILE, meta, {name: getattr(self, name) for name in _ARRAYS})

    @classmethod
    def load(cls, folder: str | Path) -> BranchSet:
        """Read a set; arrays are memory-mapped, read only.

        Raises:
            DataError: missing, damaged, or written by a newer version.
        """
        meta, arrays = load_set(Path(folder), BRANCHES_FILE, BRANCHES, _Meta, _ARRAYS, "iwm branch")
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
    through = ShardFrames(shard)
    rows: list[dict[str, Any]] = []
    vocabulary: tuple[str, ...] = ()
    for state in branch_states(plan, states, config, record_seed):
        vocabulary = state.vocabulary
        rows.append(_row(state, through))
        advance(1)
    _settle_anomalies(rows, config.anomaly_share)
    columns = {name: np.stack([row[name] for row in rows]) for name in _ARRAYS}
    return BranchSet(plan.name, plan.source, plan.game, config.seed, vocabulary, **columns)


def _row(state: BranchedState, through: ShardFrames) -> dict[str, Any]:
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
        ConfigError: a name that is no plan, none, or a plan that does not fit its game.
        DataError: a game does not start, cannot branch, or its process died.
    """
    if not config.plans:
        raise ConfigError("branch.plans: names no plan")
    wanted = [(entry.name, entry.states) for entry in config.plans]
    make = partial(_make, config, record.seed, shard)
    write_sets(out_dir, "branch", "states", record, wanted, make, config.workers)
    return load_branches(out_dir)


def _make(
    config: BranchConfig,
    record_seed: int,
    shard: ShardConfig,
    folder: Path,
    plan: RecordPlan,
    states: int,
) -> None:
    """Make one set in a worker."""
    make_branch_set(plan, states, config, record_seed, shard, count).save(folder)

"""Removed objects on disk: runs of three frames, from the last of which an object is missing.

``artifacts/removals/<plan>/`` holds ``removals.json`` and one ``.npy`` file for each array of
:class:`RemovalSet`. They are training data: their episodes are none of those of the
counterfactual sets, by which models are judged.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from iwm.data.config import ShardConfig
from iwm.data.frames import Image8, resize_frame
from iwm.data.playsets import ShardFrames, count, load_set, save_set, write_sets
from iwm.gameplay.config import RecordConfig, RecordPlan, RemovalConfig
from iwm.gameplay.removals import play_removals
from iwm.gameplay.sources import Mask
from iwm.settings import settings
from iwm.versions import Format

REMOVALS = Format("removals", current=1)
REMOVALS_FILE = "removals.json"


@settings
class _Meta:
    version: int = REMOVALS.current
    name: str
    source: str
    game: str
    seed: int
    states: int


@dataclass(frozen=True)
class RemovalSet:
    """N objects that one game's engine took away. Read with :meth:`load`; memory-mapped."""

    name: str
    """The plan's name, which is the recording's too."""
    source: str
    game: str
    seed: int
    frames: npt.NDArray[np.uint8]
    """[N, 3, h, w, 3], RGB: two frames of play, older first, and what came without the object."""
    gone: npt.NDArray[np.uint8]
    """[N, h, w]: how much of each pixel of the second frame showed it, of 255."""
    episode: npt.NDArray[np.int64]
    """[N]: removals of one episode are not independent."""

    def __len__(self) -> int:
        """N."""
        return len(self.episode)

    def save(self, folder: Path) -> None:
        """Write the set; ``folder`` appears whole or not at all."""
        meta = _Meta(
            name=self.name, source=self.source, game=self.game, seed=self.seed, states=len(self)
        )
        save_set(folder, REMOVALS_FILE, meta, {name: getattr(self, name) for name in _ARRAYS})

    @classmethod
    def load(cls, folder: str | Path) -> RemovalSet:
        """Read a set; arrays are memory-mapped, read only.

        Raises:
            DataError: missing, damaged, or written by a newer version.
        """
        meta, arrays = load_set(
            Path(folder), REMOVALS_FILE, REMOVALS, _Meta, _ARRAYS, "iwm removals"
        )
        return cls(meta.name, meta.source, meta.game, meta.seed, **arrays)

    def digest(self) -> str:
        """SHA-256 of what is in it, in hexadecimal."""
        seen = hashlib.sha256()
        for name in _ARRAYS:
            seen.update(np.ascontiguousarray(getattr(self, name)).data)
        return seen.hexdigest()


_ARRAYS = tuple(field.name for field in fields(RemovalSet))[4:]


def load_removals(folder: str | Path, only: Sequence[str] | None = None) -> list[RemovalSet]:
    """The sets below a folder, by name; those of some recordings only. There may be none.

    Raises:
        DataError: one cannot be read.
    """
    found = [path.parent for path in sorted(Path(folder).glob(f"[!.]*/{REMOVALS_FILE}"))]
    return [RemovalSet.load(path) for path in found if only is None or path.name in only]


def write_removals(
    out_dir: Path, record: RecordConfig, config: RemovalConfig, shard: ShardConfig
) -> list[RemovalSet]:
    """Make every set that the configuration names, in parallel; all of them or none.

    Args:
        out_dir: made or replaced; one folder a plan.
        record: the plans, and the seed whose episodes are avoided.
        config: how many objects of which plan.
        shard: size and compression of the frames.

    Raises:
        ConfigError: a name that is no plan, or a plan that does not fit its game.
        DataError: a game does not start, has no objects, or its process died.
    """
    wanted = [(entry.name, entry.removals) for entry in config.plans]
    make = partial(_make, config, record.seed, shard)
    write_sets(out_dir, "removals", "objects", record, wanted, make, config.workers)
    return load_removals(out_dir)


def _make(
    config: RemovalConfig,
    record_seed: int,
    shard: ShardConfig,
    folder: Path,
    plan: RecordPlan,
    removals: int,
) -> None:
    """Make one set in a worker."""
    through = ShardFrames(shard)
    frames, gone, episode = [], [], []
    for removal in play_removals(plan, removals, config, record_seed):
        frames.append(np.stack([through(frame) for frame in removal.frames]))
        gone.append(_resized(removal.gone, shard))
        episode.append(removal.episode)
        count(1)
    arrays: dict[str, Any] = {
        "frames": np.stack(frames),
        "gone": np.stack(gone),
        "episode": np.array(episode, np.int64),
    }
    RemovalSet(plan.name, plan.source, plan.game, config.seed, **arrays).save(folder)


def _resized(mask: Mask, shard: ShardConfig) -> Image8:
    """How much of each pixel of the shards' frames a mask covers, of 255."""
    grey = np.where(mask, np.uint8(255), np.uint8(0))
    return resize_frame(np.repeat(grey[..., None], 3, -1), shard)[..., 0]

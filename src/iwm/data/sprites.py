"""Trajectories from the truth tables beside recordings of the procedural sprite world.

A state holds the player's x, y, vx, vy, then for each sprite by its number whether it is
there, x, y, vx, vy (zeros where it is not: collected, or never drawn). Lengths are pixels,
velocities pixels a tic.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from iwm.data.trajectories import Episode
from iwm.errors import DataError
from iwm.gameplay.config import SplitConfig
from iwm.gameplay.play import TRUTH_FILE
from iwm.gameplay.schema import STEPS_FILE, read_recording
from iwm.gameplay.splits import split_of

SPRITES = 6
"""Most sprites besides the player."""
_PLAYER = ("x", "y", "vx", "vy")
_SPRITE = ("there", *_PLAYER)
STATE_NAMES = (
    *(f"player.{part}" for part in _PLAYER),
    *(f"sprite{number}.{part}" for number in range(1, SPRITES + 1) for part in _SPRITE),
)
VELOCITIES = tuple(
    STATE_NAMES.index(name[:-1] + "v" + name[-1]) if name[-2:] in (".x", ".y") else -1
    for name in STATE_NAMES
)


def read_truth(
    data: Path, recordings: Sequence[str] | None, split: SplitConfig
) -> tuple[list[Episode], dict[str, Any]]:
    """Episodes of every recording that has a truth table, and the facts of their set.

    Args:
        data: the recordings, one folder each.
        recordings: only these.
        split: as ingestion divided them.

    Raises:
        DataError: no recording with a truth table, or recordings with other actions.
    """
    names = recordings or sorted(path.parent.name for path in data.glob(f"*/{TRUTH_FILE}"))
    if not names:
        raise DataError(
            f"{data}: no recording has a {TRUTH_FILE}; record the procedural world, or choose "
            "another source of trajectories"
        )
    episodes: list[Episode] = []
    found = [read_recording(data / name) for name in names]
    for recording, name in zip(found, names, strict=True):
        if recording.actions != found[0].actions:
            raise DataError(f"{name}: its actions are not those of {names[0]}")
        episodes.extend(_episodes(data / name, name, len(recording.actions), split))
    facts = {
        "state_names": STATE_NAMES,
        "velocities": VELOCITIES,
        "step_s": float(found[0].extra.get("frame_skip", 1)),
        "vocabulary": found[0].actions,
    }
    return episodes, facts


def _episodes(folder: Path, name: str, actions: int, split: SplitConfig) -> list[Episode]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        truth = pq.read_table(folder / TRUTH_FILE).to_pylist()
        steps = pq.read_table(folder / STEPS_FILE)
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"{folder}: cannot be read: {' '.join(str(error).split())}") from None
    rows = {row["frame"]: sprite_state(row["sprites"]) for row in truth}
    columns = {key: steps[key].to_numpy() for key in ("episode", "frame", "action", "reward")}
    found = []
    for number in np.unique(columns["episode"]):
        mine = columns["episode"] == number
        states = np.stack([rows[frame] for frame in columns["frame"][mine].tolist()])
        taken = columns["action"][mine][:-1]
        if len(states) < 2 or (taken < 0).any():
            continue
        found.append(
            Episode(
                f"{name}/{number:06d}",
                states,
                np.eye(actions, dtype=np.float32)[taken],
                columns["reward"][mine][:-1].astype(np.float32),
                split_of(name, int(number), split),
            )
        )
    return found


def sprite_state(sprites: Sequence[dict[str, Any]]) -> npt.NDArray[np.float32]:
    """The state [34] of one row of a truth table."""
    state = np.zeros(len(STATE_NAMES), np.float32)
    for sprite in sprites:
        place = [sprite[part] for part in _PLAYER]
        if (number := sprite["id"]) == 0:
            state[: len(_PLAYER)] = place
        else:
            first = len(_PLAYER) + (number - 1) * len(_SPRITE)
            state[first : first + len(_SPRITE)] = [1.0, *place]
    return state

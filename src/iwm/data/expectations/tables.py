"""The index as the tables that expectations look at: files, rows, frames, episodes.

What an expectation needs from neighbouring rows (a frozen picture, a duplicate in
another episode, a held-out picture that stands in training) becomes a column
here, computed once for all rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from iwm.errors import DataError
from iwm.files import read_json
from iwm.gameplay.index import (
    FRAMES_FOLDER,
    INDEX,
    INDEX_SCHEMA,
    QUARANTINE_FILE,
    RECORDINGS_FILE,
    read_table,
)
from iwm.gameplay.schema import NO_ACTION

if TYPE_CHECKING:
    import pandas as pd

_COLUMNS = (
    "key", "recording", "episode", "step", "time_s", "action", "luma_mean", "sharpness", "phash",
    "sha1", "status", "split",
)  # fmt: skip


@dataclass(frozen=True)
class IndexTables:
    """Pandas tables over one index."""

    files: pd.DataFrame
    """One row a file: ``file``, ``schema_matches``."""
    rows: pd.DataFrame
    """Every row, good or set aside: ``key``, ``decoded``, ``action_known``."""
    frames: pd.DataFrame
    """Good rows, with ``frozen``, ``duplicate``, ``leaked`` and ``action_name``."""
    episodes: pd.DataFrame
    """One row an episode: ``steps``, ``time_increases``, ``fps_error``, ``splits``, ``ended``."""
    quarantine: tuple[dict[str, Any], ...]


def read_index(index_dir: Path) -> IndexTables:
    """Read an index and derive the tables.

    Raises:
        DataError: no index there, not whole, or of another version.
    """
    import pandas as pd

    recordings = _recordings(index_dir)
    matches: dict[str, bool] = {}
    tables = []
    for name in sorted(recordings):
        path = index_dir / FRAMES_FOLDER / f"{name}.parquet"
        try:
            table = read_table(path)
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{path}: not readable: {' '.join(str(error).split())}") from None
        matches[path.name] = bool(table.schema.equals(INDEX_SCHEMA))
        if matches[path.name]:
            tables.append(table.select(_COLUMNS))
    schema = pa.schema([INDEX_SCHEMA.field(name) for name in _COLUMNS])
    joined = pa.concat_tables([schema.empty_table(), *tables])
    # Digests as numbers: comparing small integers instead of a hundred thousand byte strings.
    digests = joined["sha1"].combine_chunks().dictionary_encode().indices.to_numpy()
    # Names that repeat are kept once; a day of play is millions of rows.
    data = joined.drop_columns("sha1").to_pandas(categories=["recording", "status", "split"])
    data["sha1"] = digests
    data["episode_id"] = data.groupby(["recording", "episode"], observed=True).ngroup()
    data["decoded"] = data["status"] == "ok"
    _add_actions(data, recordings)
    frames = data[data["decoded"]].copy()
    _add_repeats(frames)
    files = pd.DataFrame(
        {"file": list(matches), "schema_matches": pd.Series(list(matches.values()), dtype=bool)}
    )
    return IndexTables(
        files, data, frames, _episodes(data, frames, recordings), _quarantine(index_dir)
    )


def _recordings(index_dir: Path) -> dict[str, dict[str, Any]]:
    path = index_dir / RECORDINGS_FILE
    try:
        document = read_json(path)
        found, recordings = document["version"], dict(document["recordings"])
    except FileNotFoundError:
        raise DataError(f"{path}: not found; `iwm ingest` makes the index") from None
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(f"{path}: not a list of recordings: {error!r}") from None
    INDEX.check(found, path)
    return recordings


def _add_actions(data: pd.DataFrame, recordings: dict[str, dict[str, Any]]) -> None:
    """``action_known``: within the vocabulary; ``action_name``: ``game/action`` or null."""
    pairs = data[["recording", "action"]].drop_duplicates()
    names: dict[tuple[str, int], str | None] = {}
    known: dict[tuple[str, int], bool] = {}
    for recording, action in pairs.itertuples(index=False):
        vocabulary = recordings[recording]["actions"]
        inside = 0 <= action < len(vocabulary)
        known[recording, action] = inside or action == NO_ACTION
        game = recordings[recording]["game"]
        names[recording, action] = f"{game}/{vocabulary[action]}" if inside else None
    where = list(zip(data["recording"], data["action"], strict=True))
    data["action_known"] = np.array([known[pair] for pair in where], dtype=bool)
    data["action_name"] = np.array([names[pair] for pair in where], dtype=object)


def _add_repeats(frames: pd.DataFrame) -> None:
    """``frozen``, ``duplicate`` and ``leaked``: pictures seen before, and where."""
    episode, phash = frames["episode_id"].to_numpy(), frames["phash"].to_numpy()
    same = (episode[1:] == episode[:-1]) & (phash[1:] == phash[:-1])
    frames["frozen"] = np.concatenate([np.zeros(min(1, len(frames)), dtype=bool), same])
    groups = frames.groupby("sha1")["episode_id"]
    frames["duplicate"] = groups.transform("min") != groups.transform("max")
    train = frames["split"].to_numpy() == "train"
    frames["held_out"] = ~train
    frames["leaked"] = ~train & np.isin(phash, phash[train])


def _episodes(
    data: pd.DataFrame, frames: pd.DataFrame, recordings: dict[str, dict[str, Any]]
) -> pd.DataFrame:
    untimed = {name for name, value in recordings.items() if value["source"] == "images"}
    variable = {name for name, value in recordings.items() if value["variable_frame_rate"]}
    groups = data.groupby("episode_id")
    episodes = groups.agg(
        recording=("recording", "first"),
        episode=("episode", "first"),
        steps=("step", "size"),
        splits=("split", "nunique"),
        last_action=("action", "last"),
    )
    timed = frames.groupby("episode_id").agg(
        first_s=("time_s", "first"),
        last_s=("time_s", "last"),
        first=("step", "first"),
        last=("step", "last"),
    )
    episodes = episodes.join(timed)
    seconds = (episodes["last_s"] - episodes["first_s"]).where(lambda value: value > 0)
    fps = (episodes["last"] - episodes["first"]) / seconds
    nominal = episodes["recording"].map({name: value["fps"] for name, value in recordings.items()})
    exempt = episodes["recording"].isin(untimed | variable)
    episodes["fps_error"] = (fps / nominal.astype(float) - 1.0).abs().where(~exempt)
    inside = frames["episode_id"].to_numpy()[1:] == frames["episode_id"].to_numpy()[:-1]
    back = inside & (np.diff(frames["time_s"].to_numpy()) <= 0)
    broken = set(frames["episode_id"].to_numpy()[1:][back])
    episodes["time_increases"] = [
        name in untimed or index not in broken
        for index, name in zip(episodes.index, episodes["recording"], strict=True)
    ]
    episodes["ended"] = episodes["last_action"] == NO_ACTION
    return episodes


def _quarantine(index_dir: Path) -> tuple[dict[str, Any], ...]:
    path = index_dir / QUARANTINE_FILE
    try:
        table = read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path}: not readable: {' '.join(str(error).split())}") from None
    counts = table.group_by("reason").aggregate([("frames", "sum")])
    rows = [{"reason": row["reason"], "frames": row["frames_sum"]} for row in counts.to_pylist()]
    return tuple(sorted(rows, key=lambda row: (-row["frames"], row["reason"])))

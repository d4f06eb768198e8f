"""Action logs: time-stamped actions in CSV, JSON lines or parquet, laid onto frames.

Columns (``time`` in seconds, never falling; one of the three ways to name actions):

``time, action``              the action that is in force from this time on, by name
``time, key, event``          ``event`` is ``down`` or ``up``; the action is the sorted set of
                              keys held, joined by ``+``, or ``none``
``time, action_<a>, ...``     continuous: one number a column (JSON: ``action`` as a list)

and, if wanted, ``reward``, ``done`` and ``episode``.

**Which action a frame gets.** Frame *i* is shown during [t_i, t_i+1). It gets the
action in force half a frame after t_i: half of its own interval or of the median
interval, whichever is shorter. So a row written within half a frame of its frame's
time counts for that frame, whether the clocks jitter, time stamps are rounded
(Matroska: to milliseconds) or frames after it were dropped. Before the first row
nothing is in force. ``reward`` is the sum and ``done`` the *or* over the rows of the
interval, which for them begins a millisecond early.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from iwm.errors import DataError
from iwm.gameplay.images import printable
from iwm.gameplay.schema import NO_ACTION

IDLE = "none"
"""The action of a key log while no key is held."""

_MAX_BYTES = 2**31
_MAX_ACTIONS = 4096
_MAX_NAME = 200
_EARLY_S = 0.001
_DOWN = frozenset({"down", "press", "pressed"})
_UP = frozenset({"up", "release", "released"})
_TRUE = frozenset({"1", "true", "yes"})
_FALSE = frozenset({"0", "false", "no", ""})


@dataclass(frozen=True)
class ActionLog:
    """A checked log of ``n`` rows."""

    file: str
    times_s: NDArray[np.float64]
    """``[n]``, never falling, on the log's own clock."""
    names: tuple[str, ...]
    """``[n]`` action names; empty if the actions are continuous."""
    vectors: NDArray[np.float32] | None
    """``[n, action_dim]`` continuous actions."""
    rewards: NDArray[np.float32]
    done: NDArray[np.bool_]
    episodes: tuple[str, ...] | None
    """``[n]`` episode labels, if the log has them."""


@dataclass(frozen=True)
class FrameActions:
    """What each of ``n`` frames gets from a log."""

    action: NDArray[np.int32]
    vectors: NDArray[np.float32] | None
    """``[n, action_dim]``; rows where ``in_force`` is false mean nothing."""
    in_force: NDArray[np.bool_]
    reward: NDArray[np.float32]
    done: NDArray[np.bool_]
    episode: NDArray[np.int32]


def read_log(path: Path) -> ActionLog:
    """Read and check an action log.

    Args:
        path: ``.csv``, ``.tsv``, ``.jsonl``, ``.ndjson`` or ``.parquet``.

    Raises:
        DataError: one line with the file, the row and what is wrong with it.
    """
    where = printable(path)
    try:
        size = path.stat().st_size
    except OSError as error:
        raise DataError(f"{where}: action log: {error.strerror}") from None
    if size == 0:
        raise DataError(f"{where}: action log: the file is empty (zero bytes)")
    if size > _MAX_BYTES:
        raise DataError(f"{where}: action log of {size:,} bytes, more than {_MAX_BYTES:,}")
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        rows = _read_parquet(path, where)
    elif suffix in (".csv", ".tsv"):
        rows = _read_csv(_text(path, where), "\t" if suffix == ".tsv" else ",", where)
    elif suffix in (".jsonl", ".ndjson"):
        rows = _read_jsonl(_text(path, where), where)
    else:
        raise DataError(f"{where}: action log must be .csv, .tsv, .jsonl, .ndjson or .parquet")
    if not rows:
        raise DataError(f"{where}: action log without rows")
    return _check(rows, where)


def _text(path: Path, where: str) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: not UTF-8 at byte {error.start}; convert it first") from None


Rows = list[tuple[int, dict[str, Any]]]


def _read_csv(text: str, delimiter: str, where: str) -> Rows:
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
    rows: Rows = []
    try:
        for row in reader:
            if None in row or None in row.values():
                raise DataError(
                    f"{where}: line {reader.line_num}: not as many values as the header has columns"
                )
            values = {key.strip().lower(): value.strip() for key, value in row.items()}
            rows.append((reader.line_num, values))
    except csv.Error as error:
        raise DataError(f"{where}: line {reader.line_num}: {error}") from None
    return rows


def _read_jsonl(text: str, where: str) -> Rows:
    rows: Rows = []
    for line, content in enumerate(text.split("\n"), 1):
        if not content.strip():
            continue
        try:
            row = json.loads(content)
        except (ValueError, RecursionError):
            raise DataError(f"{where}: line {line}: not JSON") from None
        if not isinstance(row, dict):
            raise DataError(f"{where}: line {line}: expected an object")
        rows.append((line, {key.lower(): value for key, value in row.items()}))
    return rows


def _read_parquet(path: Path, where: str) -> Rows:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(path).read()
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{where}: not parquet: {' '.join(str(error).split())[:200]}") from None
    table = table.rename_columns([name.lower() for name in table.column_names])
    return list(enumerate(table.to_pylist(), 1))


def _number(value: Any, what: str, where: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise DataError(f"{where}: {what} is {value!r}, not a number") from None
    if not math.isfinite(number):
        raise DataError(f"{where}: {what} is {value!r}, not a finite number")
    return number


def _truth(value: Any, where: str) -> bool:
    word = str(value).lower()
    if word in _TRUE or word == "1.0":
        return True
    if word in _FALSE or word in ("none", "0.0"):
        return False
    raise DataError(f"{where}: done is {value!r}, not true or false")


def _name(value: Any, what: str, where: str) -> str:
    name = "" if value is None else str(value).strip()
    if not name or len(name) > _MAX_NAME or not name.isprintable():
        raise DataError(f"{where}: {what} is {name[:40]!r}, not a name of 1 to {_MAX_NAME} letters")
    return name


def _check(rows: Rows, where: str) -> ActionLog:
    columns = set(rows[0][1])
    clock = next((name for name in ("time", "time_s") if name in columns), None)
    if clock is None:
        raise DataError(f"{where}: no column time (seconds); found {', '.join(sorted(columns))}")
    parts = [name for name in rows[0][1] if name.startswith("action_")]
    listed = isinstance(rows[0][1].get("action"), (list, tuple))
    keyed = {"key", "event"} <= columns
    if not (keyed or parts or "action" in columns):
        raise DataError(f"{where}: no column action, no key and event, and no action_<name>")
    times = np.empty(len(rows))
    rewards = np.zeros(len(rows), np.float32)
    done = np.zeros(len(rows), np.bool_)
    names: list[str] = []
    vectors: list[list[float]] = []
    episodes: list[str] = []
    held: set[str] = set()
    for i, (line, row) in enumerate(rows):
        here = f"{where}: line {line}"
        times[i] = _number(row.get(clock), clock, here)
        if i and times[i] < times[i - 1]:
            raise DataError(f"{here}: time {times[i]:g} is before the row above, {times[i - 1]:g}")
        if keyed:
            names.append(_held(held, row, here))
        elif parts:
            vectors.append([_number(row.get(name), name, here) for name in parts])
        elif listed:
            vectors.append([_number(value, "action", here) for value in row.get("action") or ()])
        else:
            names.append(_name(row.get("action"), "action", here))
        if row.get("reward") not in (None, ""):
            rewards[i] = _number(row["reward"], "reward", here)
        done[i] = _truth(row.get("done", False), here)
        if "episode" in columns:
            episodes.append(_name(row.get("episode"), "episode", here))
    if len({len(vector) for vector in vectors}) > 1 or (vectors and not vectors[0]):
        raise DataError(f"{where}: actions are lists of different or zero lengths")
    return ActionLog(
        where,
        times,
        tuple(names),
        np.asarray(vectors, np.float32) if vectors else None,
        rewards,
        done,
        tuple(episodes) if episodes else None,
    )


def _held(held: set[str], row: dict[str, Any], where: str) -> str:
    """Apply one key event; the name of what is held after it."""
    key = _name(row.get("key"), "key", where)
    event = str(row.get("event")).lower()
    if event in _DOWN:
        held.add(key)  # again while held: the keyboard's auto-repeat
    elif event in _UP:
        held.discard(key)
    else:
        raise DataError(f"{where}: event is {event!r}, not down or up")
    return "+".join(sorted(held)) or IDLE


def vocabulary(log: ActionLog, actions: Sequence[str] | None) -> tuple[str, ...]:
    """The action names, id by position: those given, or the log's own in sorted order.

    Raises:
        DataError: the log has an action that is not among those given, or too many.
    """
    if log.vectors is not None:
        if actions:
            raise DataError(f"{log.file}: continuous actions have no vocabulary")
        return ()
    found = dict.fromkeys(log.names)
    if actions is None:
        if len(found) > _MAX_ACTIONS:
            raise DataError(f"{log.file}: {len(found)} different actions, more than {_MAX_ACTIONS}")
        return tuple(sorted(found))
    unknown = [name for name in found if name not in set(actions)]
    if unknown:
        first = log.names.index(unknown[0])
        raise DataError(
            f"{log.file}: unknown action {unknown[0]!r} at {log.times_s[first]:g} s"
            f"{f' and {len(unknown) - 1} more' if len(unknown) > 1 else ''}; "
            f"known are {', '.join(actions)}"
        )
    return tuple(dict.fromkeys(actions))


def row_in_force(
    starts_s: NDArray[np.float64], changes_s: NDArray[np.float64], last_s: float
) -> NDArray[np.int64]:
    """For each frame the log row whose action it gets.

    Args:
        starts_s: ``[frames]`` times of the frames, ascending.
        changes_s: ``[rows]`` times of the rows, never falling, on the frames' clock.
        last_s: how long the last frame is shown, seconds.

    Returns:
        ``[frames]`` row numbers; -1 where no row is in force yet.
    """
    shown = np.append(np.diff(starts_s), last_s)
    looked = starts_s + np.minimum(shown, np.median(shown)) / 2
    rows: NDArray[np.int64] = np.searchsorted(changes_s, looked, side="right") - 1
    return rows


def _segments(labels: Iterable[Any]) -> NDArray[np.int32]:
    """Number runs of equal labels 0, 1, 2 ..."""
    numbers: list[int] = []
    previous: Any = None
    for label in labels:
        numbers.append(numbers[-1] + (label != previous) if numbers else 0)
        previous = label
    return np.asarray(numbers, np.int32)


def align(
    log: ActionLog,
    names: Sequence[str],
    times_s: NDArray[np.float64],
    *,
    offset_s: float = 0.0,
    last_s: float,
    episode_s: float = 0.0,
) -> FrameActions:
    """Lay a log onto frames; the rule is in this module's description.

    Args:
        log: the log.
        names: the vocabulary, which holds every action of the log.
        times_s: ``[frames]`` seconds since the first frame, ascending.
        offset_s: added to the log's times: how much later the log's clock started.
        last_s: how long the last frame is shown, seconds.
        episode_s: length of the pieces an unbroken play is cut into, where the log has
            neither ``episode`` nor any ``done``; 0 leaves it whole.
    """
    changes = log.times_s + offset_s
    chosen = row_in_force(times_s, changes, last_s)
    in_force = chosen >= 0
    row = np.maximum(chosen, 0)
    count = len(times_s)
    action = np.full(count, NO_ACTION, np.int32)
    if log.vectors is None:
        ids = {name: number for number, name in enumerate(names)}
        action[in_force] = np.asarray([ids[name] for name in log.names], np.int32)[row[in_force]]
    at = np.searchsorted(times_s, changes + _EARLY_S, side="right") - 1
    inside = (at >= 0) & (changes + _EARLY_S < times_s[-1] + last_s)
    reward = np.zeros(count, np.float32)
    np.add.at(reward, at[inside], log.rewards[inside])
    done = np.zeros(count, np.bool_)
    np.logical_or.at(done, at[inside], log.done[inside])
    if log.episodes is not None:
        episode = _segments(log.episodes[number] for number in row)
    elif log.done.any():
        episode = np.concatenate([[0], np.cumsum(done[:-1])]).astype(np.int32)
    elif episode_s > 0:
        episode = _segments(np.floor(times_s / episode_s + 1e-9).tolist())
    else:
        episode = np.zeros(count, np.int32)
    ends = np.append(episode[1:] != episode[:-1], True)
    # By the schema the last frame of an episode has no action: what it led to was not recorded.
    # Where the log says done, the frame before has the action that ended the episode.
    action[ends & ~done] = NO_ACTION
    in_force[ends & ~done] = False
    vectors = None if log.vectors is None else log.vectors[row]
    return FrameActions(action, vectors, in_force, reward, done, episode)

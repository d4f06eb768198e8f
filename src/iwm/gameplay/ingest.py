"""Ingestion: every frame decoded once, measured, and written to the index.

Recordings are cut into ranges of frames that an executor measures side by side; a
recording's rows are written, atomically and byte-stable, when its last range is
in. What cannot be used keeps its row with the reason as ``status``, and stands
in ``quarantine.parquet``. ``recordings.json`` is written last: an index without
it is not whole.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import BrokenExecutor, Executor, Future, as_completed
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from iwm.errors import DataError
from iwm.files import TEMPORARY_PREFIX, atomic_path, write_json
from iwm.gameplay.config import IngestConfig
from iwm.gameplay.executor import make_executor
from iwm.gameplay.index import (
    FRAMES_FOLDER,
    INDEX_SCHEMA,
    QUARANTINE_FILE,
    QUARANTINE_SCHEMA,
    RECORDINGS_FILE,
    SPLITS,
    described,
    read_table,
    split_counts,
    write_table,
)
from iwm.gameplay.measure import MEASURE_SCHEMA, OK, Survey, measure, printable, survey
from iwm.gameplay.reader import image_files
from iwm.gameplay.schema import Recording
from iwm.gameplay.splits import check_split, empty_splits, split_of
from iwm.progress import Progress
from iwm.settings import to_dict

CHUNK_FRAMES = 1024
"""Frames a task measures: seconds of work, so that workers end together."""

_INPUTS = b"iwm.index.inputs"
_TOP_REASONS = 3


@dataclass
class IngestSummary:
    """What one ingestion found."""

    recordings: int = 0
    reused: int = 0
    """Recordings whose files had not changed since the last run."""
    frames: int = 0
    """Frames looked at, good and bad."""
    quarantined: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    """Frames set aside, by reason."""
    split_frames: Counter[str] = field(default_factory=Counter)
    """Good frames in each split."""
    split_episodes: Counter[str] = field(default_factory=Counter)
    warnings: list[str] = field(default_factory=list)

    @property
    def share(self) -> float:
        """Share of frames set aside, 0..1."""
        return self.quarantined / self.frames if self.frames else 0.0


@dataclass
class _Job:
    """A recording under way."""

    name: str
    survey: Survey
    recording: Recording
    steps: pa.Table
    inputs: str
    parts: dict[int, pa.Table] = field(default_factory=dict)
    waiting: int = 0


def ingest(data_dir: Path, out_dir: Path, cfg: IngestConfig) -> IngestSummary:
    """Measure every frame of every recording and write the index.

    Args:
        data_dir: holds one folder a recording.
        out_dir: gets ``frames/<recording>.parquet``, ``quarantine.parquet`` and
            ``recordings.json``. Recordings in it whose files have not changed are kept.
        cfg: where the work runs, bounds, splits.

    Raises:
        DataError: no recordings; more frames set aside than ``max_quarantine_share``
            allows (``quarantine.parquet`` is written all the same); no space to write.
        ConfigError: impossible splits, no Dask scheduler, or one without workers.
        ClusterError: the Dask cluster was lost.
    """
    check_split(cfg.split)
    folders, quarantine = _discover(data_dir)
    # From here on the index is not whole, until recordings.json stands again.
    (out_dir / RECORDINGS_FILE).unlink(missing_ok=True)
    summary = IngestSummary()
    metadata: dict[str, Any] = {}
    counts: dict[str, dict[str, dict[str, int]]] = {}
    with make_executor(cfg) as executor:
        jobs, unusable = _survey_all(executor, folders, cfg)
        quarantine += unusable
        for job in jobs:
            recorded = {"folder": job.name, **to_dict(job.recording)}
            metadata[job.name] = recorded | {"frames": job.steps.num_rows}
        for job, table in _measured(executor, jobs, out_dir, cfg, summary):
            quarantine += _quarantine_rows(data_dir, job, table)
            _count(summary, job.name, table, cfg)
            counts[job.name] = split_counts(table)
    for row in quarantine:
        if row["recording"] not in metadata:
            summary.frames += row["frames"]
        summary.quarantined += row["frames"]
        summary.reasons[row["reason"]] += row["frames"]
    summary.recordings = len(jobs)
    _forget_removed(out_dir / FRAMES_FOLDER, set(metadata))
    quarantine.sort(key=lambda row: (row["recording"], row["file"], row["frame"] or 0))
    aside = pa.Table.from_pylist(quarantine, schema=QUARANTINE_SCHEMA)
    _write_parquet(out_dir / QUARANTINE_FILE, aside)
    _check_bound(summary, out_dir, cfg)
    total = Counter({name: summary.split_episodes[name] for name in SPLITS})
    for name in empty_splits((key for key, count in total.items() if count), cfg.split):
        summary.warnings.append(
            f"no episode of any recording falls into split {name}: record more episodes, "
            "or change ingest.split.salt"
        )
    write_json(out_dir / RECORDINGS_FILE, described(metadata, counts, aside))
    return summary


def _discover(data_dir: Path) -> tuple[list[Path], list[dict[str, Any]]]:
    """Recording folders by name, and quarantine rows for what cannot be one."""
    if not data_dir.is_dir():
        raise DataError(f"{data_dir}: not found; `iwm record` makes it")
    folders: list[Path] = []
    quarantine: list[dict[str, Any]] = []
    for path in sorted(data_dir.iterdir(), key=lambda path: os.fsencode(path.name)):
        if path.name.startswith((".", TEMPORARY_PREFIX)):
            continue
        name = printable(path.name)
        if name != path.name:
            quarantine.append(_row(name, name, None, 1, "the folder's name is not UTF-8"))
        elif not path.is_dir():
            quarantine.append(_row(name, name, None, 0, "a loose file, not a recording's folder"))
        else:
            folders.append(path)
    if not folders and not quarantine:
        raise DataError(f"{data_dir}: holds no recordings; `iwm record` or `iwm import` makes one")
    return folders, quarantine


def _row(recording: str, file: str, frame: int | None, frames: int, reason: str) -> dict[str, Any]:
    return {
        "recording": recording, "file": file, "frame": frame, "frames": frames, "reason": reason,
    }  # fmt: skip


def _survey_all(
    executor: Executor, folders: list[Path], cfg: IngestConfig
) -> tuple[list[_Job], list[dict[str, Any]]]:
    jobs, unusable = [], []
    futures = [executor.submit(survey, str(folder.absolute())) for folder in folders]
    for folder, future in zip(folders, futures, strict=True):
        found = future.result()
        if found.recording is None or found.steps is None:
            reason = found.reason or "unusable"
            unusable.append(_row(folder.name, found.file, None, 1, reason))
            continue
        settings = f"{cfg.max_pixels} {to_dict(cfg.split)} {version('iwm')}"
        inputs = f"{found.fingerprint} {settings}"
        jobs.append(_Job(folder.name, found, found.recording, found.steps, inputs))
    return jobs, unusable


def _measured(
    executor: Executor,
    jobs: list[_Job],
    out_dir: Path,
    cfg: IngestConfig,
    summary: IngestSummary,
) -> Iterator[tuple[_Job, pa.Table]]:
    """Each recording with its index rows, as soon as they are written."""
    todo: list[_Job] = []
    for job in jobs:
        former = _unchanged(_frames_file(out_dir, job.name), job.inputs)
        if former is None:
            todo.append(job)
            continue
        summary.reused += 1
        yield job, former
    futures: dict[Future[pa.Table], tuple[_Job, int]] = {}
    total = sum(job.steps.num_rows for job in todo)
    # The longest recording first: its ranges then fill the gaps of the shorter ones.
    for job in sorted(todo, key=lambda job: -job.steps.num_rows):
        for start, positions in _ranges(job.steps):
            future = executor.submit(
                measure, job.survey.folder, job.recording, positions, cfg.max_pixels
            )
            futures[future] = (job, start)
            job.waiting += 1
        if not job.waiting:  # every row is already set aside
            total -= job.steps.num_rows
            yield job, _finish(job, out_dir, cfg)
    try:
        with Progress("ingest", total, "frames") as progress:
            for future in as_completed(futures):
                job, start = futures.pop(future)
                part = future.result()
                job.parts[start] = part
                job.waiting -= 1
                progress.advance(part.num_rows, note=job.name)
                if not job.waiting:
                    yield job, _finish(job, out_dir, cfg)
    except BrokenExecutor:
        names = sorted({job.name for job, _ in futures.values()} | {job.name})
        raise DataError(
            f"ingest: a worker process died (out of memory, or its decoder crashed) while "
            f"reading one of {', '.join(names)}"
        ) from None
    finally:
        for future in futures:
            future.cancel()


def _decodable(steps: pa.Table) -> npt.NDArray[np.bool_]:
    """Rows whose frame position can be looked up: all but those out of order."""
    frame = steps["frame"].to_numpy()
    highest = np.maximum.accumulate(np.r_[-1, frame[:-1]])
    return np.asarray(frame > highest)


def _ranges(steps: pa.Table) -> Iterator[tuple[int, npt.NDArray[np.int64]]]:
    positions = steps["frame"].to_numpy()[_decodable(steps)]
    for start in range(0, len(positions), CHUNK_FRAMES):
        yield start, positions[start : start + CHUNK_FRAMES]


def _finish(job: _Job, out_dir: Path, cfg: IngestConfig) -> pa.Table:
    """Join a recording's steps and measures into index rows and write them."""
    steps, rows = job.steps, job.steps.num_rows
    # Rows whose frame was never looked up take the last, all-zero row.
    nothing = dict.fromkeys(MEASURE_SCHEMA.names, 0) | {"sha1": bytes(20), "status": OK}
    blank = pa.Table.from_pylist([nothing], schema=MEASURE_SCHEMA)
    measured = pa.concat_tables([*(job.parts[start] for start in sorted(job.parts)), blank])
    decodable = _decodable(steps)
    pick = np.where(decodable, np.cumsum(decodable) - 1, measured.num_rows - 1)
    measured = measured.take(pa.array(pick))
    # What the log says is wrong with a row goes before what its frame says.
    status = pc.if_else(pc.equal(steps["status"], OK), measured["status"], steps["status"])
    episodes, steps_no = steps["episode"].to_pylist(), steps["step"].to_pylist()
    splits = {episode: split_of(job.name, episode, cfg.split) for episode in set(episodes)}
    columns = {name: steps[name] for name in steps.column_names}
    columns |= {name: measured[name] for name in measured.column_names}
    columns |= {
        "key": [f"{job.name}/{e:06d}/{s:06d}" for e, s in zip(episodes, steps_no, strict=True)],
        "recording": pa.repeat(job.name, rows),
        "status": status,
        "split": [splits[episode] for episode in episodes],
    }
    schema = INDEX_SCHEMA.with_metadata(
        {**(INDEX_SCHEMA.metadata or {}), _INPUTS: job.inputs.encode()}
    )
    table = pa.table({name: columns[name] for name in schema.names}, schema=schema)
    _write_parquet(_frames_file(out_dir, job.name), table)
    job.parts.clear()
    return table


def _frames_file(out_dir: Path, name: str) -> Path:
    return out_dir / FRAMES_FOLDER / f"{name}.parquet"


def _unchanged(path: Path, inputs: str) -> pa.Table | None:
    """The rows in ``path`` if they were made from the same inputs by the same software."""
    try:
        table = read_table(path)
    except (OSError, pa.ArrowException):
        return None
    same = (table.schema.metadata or {}).get(_INPUTS) == inputs.encode()
    return table if same and table.schema.equals(INDEX_SCHEMA) else None


def _write_parquet(path: Path, table: pa.Table) -> None:
    """Write parquet atomically; the same rows give the same bytes."""
    try:
        with atomic_path(path) as temporary:
            write_table(table, temporary)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else " ".join(str(error).split())
        raise DataError(f"{path}: cannot be written: {reason}") from None


def _quarantine_rows(data_dir: Path, job: _Job, table: pa.Table) -> list[dict[str, Any]]:
    """One row for each run of neighbouring frames set aside for the same reason."""
    status = np.asarray(table["status"].to_pylist(), dtype=object)
    bad = status != OK
    if not bad.any():
        return []
    starts = np.flatnonzero(np.r_[True, status[1:] != status[:-1]])
    ends = np.r_[starts[1:], len(status)]
    frames = table["frame"].to_pylist()
    name = job.recording.frames_path
    folder = data_dir / job.name / name
    if folder.is_dir():  # each image is a file of its own
        names = [printable(file.relative_to(folder.parent)) for file in image_files(folder)]
        return [
            _row(job.name, names[frame] if 0 <= frame < len(names) else name, frame, 1, reason)
            for frame, reason in zip(frames, status, strict=True)
            if reason != OK
        ]
    return [
        _row(
            job.name,
            name,
            None if end - start == len(status) else frames[start],
            int(end - start),
            str(status[start]),
        )
        for start, end in zip(starts, ends, strict=True)
        if bad[start]
    ]


def _count(summary: IngestSummary, name: str, table: pa.Table, cfg: IngestConfig) -> None:
    """Add a recording to the summary; warn of splits it leaves empty."""
    summary.frames += table.num_rows
    good = table.filter(pc.equal(table["status"], OK))
    episodes: dict[int, str] = dict(
        zip(good["episode"].to_pylist(), good["split"].to_pylist(), strict=True)
    )
    summary.split_frames.update(good["split"].to_pylist())
    summary.split_episodes.update(episodes.values())
    empty = empty_splits(episodes.values(), cfg.split)
    if empty:
        summary.warnings.append(
            f"{name}: none of its {len(episodes)} episodes falls into {', '.join(empty)}"
        )


def _forget_removed(folder: Path, names: set[str]) -> None:
    """Delete the rows of recordings that are no longer there."""
    for file in folder.glob("*.parquet"):
        if file.name.removesuffix(".parquet") not in names:
            file.unlink()


def _check_bound(summary: IngestSummary, out_dir: Path, cfg: IngestConfig) -> None:
    if summary.share <= cfg.max_quarantine_share:
        return
    top = "; ".join(
        f"{reason} ({count:,})" for reason, count in summary.reasons.most_common(_TOP_REASONS)
    )
    raise DataError(
        f"{out_dir / QUARANTINE_FILE}: {summary.quarantined:,} of {summary.frames:,} frames "
        f"({100 * summary.share:.2f} %) set aside, over the bound of "
        f"{100 * cfg.max_quarantine_share:g} % (ingest.max_quarantine_share): {top}"
    )

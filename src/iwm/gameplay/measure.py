"""What ingestion's workers do: look a recording over, and measure a range of its frames.

Module-level functions over plain values, so that any executor can run them; on a
cluster the workers see the same ``data/`` path. Reasons for setting something
aside never hold the folder's path, or the index would differ between machines.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from iwm.errors import DataError
from iwm.gameplay.index import INDEX_SCHEMA
from iwm.gameplay.quality import MIN_SIDE, frame_statistics, perceptual_hashes
from iwm.gameplay.reader import image_files, iter_frames, read_steps
from iwm.gameplay.schema import (
    NO_ACTION,
    RECORDING_FILE,
    STEPS_FILE,
    STEPS_SCHEMA,
    UNSEALED,
    Recording,
    check_seal,
    read_recording,
)

OK = "ok"

MEASURE_SCHEMA = pa.schema(
    [
        INDEX_SCHEMA.field(name)
        for name in (
            "width", "height", "luma_mean", "luma_std", "sharpness", "phash", "sha1", "status",
        )
    ]
)  # fmt: skip

_NO_SHA1 = bytes(20)
_READ_BYTES = 1 << 20


@dataclass(frozen=True)
class Survey:
    """A recording looked over: everything but its frames."""

    folder: str
    recording: Recording | None
    steps: pa.Table | None
    """``STEPS_SCHEMA`` and a column ``status``: ``"ok"`` or what is wrong with the row."""
    fingerprint: str
    """SHA-256 over the contents of its files."""
    file: str = ""
    """The file that makes it unusable."""
    reason: str | None = None
    """Why the whole recording is set aside."""


def survey(folder: str) -> Survey:
    """Read and check ``recording.json`` and the steps of one recording folder."""
    path = Path(folder)
    recording: Recording | None = None
    file = RECORDING_FILE
    try:
        recording = read_recording(path)
        where = PurePath(recording.frames_path)
        if where.is_absolute() or ".." in where.parts or not where.parts:
            raise DataError(f"frames_path {recording.frames_path!r} leaves the recording's folder")
        file = STEPS_FILE
        if recording.version != UNSEALED:
            check_seal(path, STEPS_FILE)
        steps = read_steps(path)
        problems = check_steps(steps, recording)
        steps = steps.append_column("status", pa.array(problems, pa.string()))
        return Survey(folder, recording, steps, _fingerprint(path, recording))
    except (DataError, OSError) as error:
        return Survey(folder, recording, None, "", file, _without_path(error, path))


def check_steps(steps: pa.Table, recording: Recording) -> list[str]:
    """What is wrong with each row: ``"ok"`` or the reason.

    Raises:
        DataError: the table as a whole is unusable: empty, or holes in a column.
    """
    if steps.num_rows == 0:
        raise DataError("no steps")
    for field in STEPS_SCHEMA:
        if not field.nullable and steps[field.name].null_count:
            raise DataError(f"column {field.name} holds {steps[field.name].null_count} nulls")
    episode, step, frame, action, time_s = (
        steps[name].to_numpy() for name in ("episode", "step", "frame", "action", "time_s")
    )
    problems = np.full(steps.num_rows, OK, dtype=object)

    def mark(bad: npt.NDArray[np.bool_], reason: str) -> None:
        problems[bad & (problems == OK)] = reason

    mark((frame < 0) | (episode < 0) | (step < 0), "negative frame, episode or step")
    mark(~np.isfinite(time_s), "time is not a number")
    mark(~np.isfinite(steps["reward"].to_numpy()), "reward is not a number")
    later = np.r_[False, np.diff(frame) <= 0]
    mark(later, "frame position not above its predecessor's")
    backward = (np.diff(episode) == 0) & (np.diff(step) <= 0) | (np.diff(episode) < 0)
    mark(np.r_[False, backward], "episode and step not above their predecessor's")
    names = len(recording.actions)
    for value in np.unique(action[(action != NO_ACTION) & ((action < 0) | (action >= names))]):
        mark(action == value, f"unknown action {value}: the vocabulary has {names}")
    vectors = steps["action_vector"].combine_chunks()
    if vectors.null_count < len(vectors):
        lengths = vectors.value_lengths().fill_null(recording.action_dim).to_numpy()
        mark(lengths != recording.action_dim, f"action_vector is not {recording.action_dim} long")
        finite = np.isfinite(vectors.flatten().to_numpy(zero_copy_only=False))
        owner = np.repeat(np.arange(len(vectors)), vectors.value_lengths().fill_null(0).to_numpy())
        broken = np.zeros(len(vectors), dtype=bool)
        broken[owner[~finite]] = True
        mark(broken, "action_vector holds something that is not a number")
    return list(problems)


def measure(
    folder: str, recording: Recording, positions: npt.NDArray[np.int64], max_pixels: int
) -> pa.Table:
    """Decode and measure the frames at ``positions`` (ascending).

    Returns:
        ``MEASURE_SCHEMA``, one row a position, in order. What could not be decoded has
        zeros and its reason as ``status``.
    """
    rows: list[tuple[object, ...]] = []
    thumbnails: list[npt.NDArray[np.uint8]] = []
    good: list[int] = []
    for image, error in _decoded(Path(folder), recording, positions, max_pixels):
        height, width = image.shape[:2] if image is not None else (0, 0)
        reason = error or _size_problem(width, height, recording, Path(folder))
        if image is None or reason:
            rows.append((width, height, 0.0, 0.0, 0.0, 0, _NO_SHA1, reason))
            continue
        figures = frame_statistics(image)
        good.append(len(rows))
        thumbnails.append(figures.thumbnail)
        rows.append(
            (width, height, figures.luma_mean, figures.luma_std, figures.sharpness, 0,
             figures.sha1, OK)
        )  # fmt: skip
    hashes = np.zeros(len(rows), dtype=np.uint64)
    if good:
        hashes[good] = perceptual_hashes(np.stack(thumbnails))
    columns: list[object] = list(zip(*rows, strict=True)) or [()] * len(MEASURE_SCHEMA)
    columns[MEASURE_SCHEMA.get_field_index("phash")] = hashes
    return pa.Table.from_arrays(
        [
            pa.array(values, field.type)
            for values, field in zip(columns, MEASURE_SCHEMA, strict=True)
        ],
        schema=MEASURE_SCHEMA,
    )


def _decoded(
    folder: Path, recording: Recording, positions: npt.NDArray[np.int64], max_pixels: int
) -> Iterator[tuple[npt.NDArray[np.uint8] | None, str]]:
    """Exactly one ``(image, reason)`` a position, whatever happens to the file."""
    done = 0
    reason = "not decoded"
    try:
        for decoded in iter_frames(folder, recording, positions, max_pixels=max_pixels):
            done += 1
            yield decoded.image, _without_path(decoded.error or "", folder)
    except (DataError, OSError) as error:
        reason = _without_path(error, folder)
    for _ in range(done, len(positions)):
        yield None, reason


def _size_problem(width: int, height: int, recording: Recording, folder: Path) -> str:
    if min(width, height) < MIN_SIDE:
        return f"{width}x{height} is smaller than {MIN_SIDE}x{MIN_SIDE}"
    expected = (recording.width, recording.height)
    # Images in a folder may have any size each; the frames of a video may not.
    if (width, height) != expected and not (folder / recording.frames_path).is_dir():
        return f"{width}x{height} is not the recording's {expected[0]}x{expected[1]}"
    return ""


def _without_path(error: BaseException | str, folder: Path) -> str:
    """An error's text in one printable UTF-8 line, without the folder's path."""
    text = str(error)
    if isinstance(error, OSError):
        text = error.strerror or text
    text = text.replace(f"{folder}{os.sep}", "").replace(str(folder), folder.name)
    text = " ".join(text.split())
    return printable(text)


def printable(text: str | os.PathLike[str]) -> str:
    """A file name or message as valid UTF-8: bytes that are not become ``\\xNN``."""
    return os.fsencode(text).decode("utf-8", "backslashreplace")


def _fingerprint(folder: Path, recording: Recording) -> str:
    """SHA-256 over names and contents of all of the recording's files, in order."""
    digest = hashlib.sha256()
    frames = folder / recording.frames_path
    files = sorted(path for path in folder.iterdir() if path.is_file())
    if frames.is_dir():
        files += image_files(frames)
    elif frames.parent != folder and frames.exists():
        files.append(frames)
    for file in files:
        name = os.fsencode(file.relative_to(folder))
        digest.update(b"%d:%s:%d:" % (len(name), name, file.stat().st_size))
        with file.open("rb") as handle:
            while block := handle.read(_READ_BYTES):
                digest.update(block)
    return digest.hexdigest()

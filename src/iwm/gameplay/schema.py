"""What a recording is: its three files, their columns, and the action vocabulary.

A recording is one folder under ``data/``: one continuous play of one game.

``recording.json``
    :class:`Recording`, as JSON.
``frames.mkv`` (or the imported video, or a folder ``frames/`` of images)
    The frames, in order of ``steps.frame``.
``steps.parquet``
    :data:`STEPS_SCHEMA`, one row a frame, in order.

Row *t* holds frame *t* and the action taken **after seeing it**, which led to
row *t + 1*; ``reward`` and ``done`` are that action's outcome. The last row of
an episode has no action: ``action`` is :data:`NO_ACTION`.

Version 2 of a recording is sealed: ``SHA256SUMS`` holds the hash of every file but
``recording.json``. A recording is written as version 1, and sealed by `iwm migrate` when its
owner asks for it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
from pydantic import Field

from iwm.errors import ConfigError, DataError
from iwm.files import read_json, write_json
from iwm.settings import parse, settings, to_dict
from iwm.versions import Format

RECORDING = Format("recording", current=2)
UNSEALED = 1
"""The version of a recording as it is written."""
RECORDING_FILE = "recording.json"
STEPS_FILE = "steps.parquet"
FRAMES_FILE = "frames.mkv"
SEAL_FILE = "SHA256SUMS"

NO_ACTION = -1
"""Action id where none was taken (last frame of an episode, or none was logged)."""

STEPS_SCHEMA = pa.schema(
    [
        pa.field("episode", pa.int32(), nullable=False),
        pa.field("step", pa.int32(), nullable=False),  # 0, 1, 2 ... within the episode
        pa.field("time_s", pa.float64(), nullable=False),  # seconds since the recording began
        pa.field("frame", pa.int64(), nullable=False),  # position in the frames file, from 0
        pa.field("action", pa.int32(), nullable=False),  # id in the vocabulary, or NO_ACTION
        pa.field("action_vector", pa.list_(pa.float32())),  # continuous actions; null if discrete
        pa.field("reward", pa.float32(), nullable=False),
        pa.field("done", pa.bool_(), nullable=False),
    ],
    metadata={b"iwm.steps.version": b"1"},
)


@settings
class Recording:
    """``recording.json``: where a recording comes from and how to read it."""

    version: int = UNSEALED
    name: str
    source: str
    """vizdoom, gymnasium, procedural, video, images or capture."""
    game: str
    fps: Annotated[float, Field(gt=0)]
    """Nominal frames per second of *recorded* frames (engine rate / frame skip)."""
    width: Annotated[int, Field(gt=0)]
    height: Annotated[int, Field(gt=0)]
    frames_path: str = FRAMES_FILE
    """Video file or image folder, relative to the recording's folder."""
    variable_frame_rate: bool = False
    actions: tuple[str, ...]
    """The vocabulary: action id -> name. Empty when actions are continuous or absent."""
    action_dim: Annotated[int, Field(ge=0)] = 0
    """Length of ``action_vector``; 0 when actions are discrete."""
    licence: str
    seed: int | None = None
    complete: bool = True
    """False while recording, and for ever if the recorder was killed."""
    software: dict[str, str] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)


def read_recording(folder: Path) -> Recording:
    """Read and check ``recording.json``.

    Raises:
        DataError: missing, not JSON, a wrong field, or written by a newer version.
    """
    path = folder / RECORDING_FILE
    try:
        values = read_json(path)
    except FileNotFoundError:
        raise DataError(f"{path}: not found; {folder} is not a recording") from None
    except (ValueError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not JSON: {error}") from None
    if not isinstance(values, dict):
        raise DataError(f"{path}: expected an object, found {type(values).__name__}")
    RECORDING.check(values.get("version", UNSEALED), path)
    try:
        return parse(Recording, values, str(path))
    except ConfigError as error:
        raise DataError(str(error)) from None


def write_recording(folder: Path, recording: Recording) -> None:
    """Write ``recording.json`` atomically."""
    write_json(folder / RECORDING_FILE, to_dict(recording))


def sums(folder: Path) -> Iterator[tuple[str, str]]:
    """``(name, SHA-256)`` of a recording's files, but for those that hold the sums' own truth."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name not in (RECORDING_FILE, SEAL_FILE):
            with path.open("rb") as file:
                yield name, hashlib.file_digest(file, "sha256").hexdigest()


def check_seal(folder: Path, name: str) -> None:
    """Hold one file of a sealed recording against its sum.

    Raises:
        DataError: the sums are missing, or the file's content is not what was sealed.
    """
    path = folder / SEAL_FILE
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        with (folder / name).open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError as error:
        raise DataError(f"{error.filename}: not found, and the recording is sealed") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not a list of sums: {error}") from None
    if f"{found}  {name}" not in lines:
        raise DataError(f"{folder / name}: its content is not what {SEAL_FILE} says")

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
"""

from __future__ import annotations

from dataclasses import field
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
from pydantic import Field

from iwm.errors import ConfigError, DataError
from iwm.files import read_json, write_json
from iwm.settings import parse, settings, to_dict

RECORDING_VERSION = 1
RECORDING_FILE = "recording.json"
STEPS_FILE = "steps.parquet"
FRAMES_FILE = "frames.mkv"

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

    version: int = RECORDING_VERSION
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
    if isinstance(values.get("version"), int) and values["version"] > RECORDING_VERSION:
        raise DataError(
            f"{path}: recording version {values['version']} is newer than this software's "
            f"{RECORDING_VERSION}; upgrade iwm"
        )
    try:
        return parse(Recording, values, str(path))
    except ConfigError as error:
        raise DataError(str(error)) from None


def write_recording(folder: Path, recording: Recording) -> None:
    """Write ``recording.json`` atomically."""
    write_json(folder / RECORDING_FILE, to_dict(recording))

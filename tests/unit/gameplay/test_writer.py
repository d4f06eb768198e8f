"""The recording writer: exact pixels, exact bytes, whole or marked as not whole."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from iwm.errors import ConfigError, DataError
from iwm.gameplay.reader import iter_frames, read_steps, scan_video
from iwm.gameplay.schema import NO_ACTION, STEPS_FILE, STEPS_SCHEMA, Recording, read_recording
from iwm.gameplay.writer import STEPS_LOG, RecordingWriter


def recording(width: int = 32, height: int = 24, **changes: object) -> Recording:
    values: dict[str, object] = {
        "name": "r",
        "source": "procedural",
        "game": "noise",
        "fps": 35 / 8,
        "width": width,
        "height": height,
        "actions": ("noop", "left"),
        "licence": "none",
    }
    return Recording(**(values | changes))  # type: ignore[arg-type]


def noise(frames: int, width: int = 32, height: int = 24, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)


def write(folder: Path, frames: np.ndarray, meta: Recording, codec: str = "ffv1") -> None:
    with RecordingWriter(folder, meta, codec) as writer:  # type: ignore[arg-type]
        for step, frame in enumerate(frames):
            last = step == len(frames) - 1
            writer.append(
                frame, 0, step, step / meta.fps, NO_ACTION if last else step % 2, 0.5, False
            )


@hypothesis_settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(width=st.integers(8, 70), height=st.integers(8, 50), count=st.integers(1, 6))
def test_ffv1_gives_back_the_very_pixels(
    tmp_path_factory: pytest.TempPathFactory, width: int, height: int, count: int
) -> None:
    folder = tmp_path_factory.mktemp("recordings") / "r"
    frames = noise(count, width, height)
    write(folder, frames, recording(width, height))
    decoded = list(iter_frames(folder, read_recording(folder)))
    assert [item.frame for item in decoded] == list(range(count))
    assert np.array_equal(np.stack([item.image for item in decoded]), frames)


@pytest.mark.parametrize("codec", ["ffv1", "h264"])
def test_the_same_frames_give_the_same_bytes(tmp_path: Path, codec: str) -> None:
    for name in ("a", "b"):
        write(tmp_path / name, noise(20), recording(), codec)
    digests = [
        {file.name: hashlib.sha1(file.read_bytes()).hexdigest() for file in folder.iterdir()}
        for folder in (tmp_path / "a", tmp_path / "b")
    ]
    assert digests[0] == digests[1]
    assert set(digests[0]) == {"frames.mkv", "steps.parquet", "recording.json"}


def test_steps_are_the_schema_and_the_log_is_gone(tmp_path: Path) -> None:
    write(tmp_path / "r", noise(5), recording())
    table = read_steps(tmp_path / "r")
    assert table.schema.equals(STEPS_SCHEMA)
    assert table["frame"].to_pylist() == [0, 1, 2, 3, 4]
    assert table["action"].to_pylist() == [0, 1, 0, 1, NO_ACTION]
    assert not (tmp_path / "r" / STEPS_LOG).exists()
    assert read_recording(tmp_path / "r").complete
    assert "av" in read_recording(tmp_path / "r").software


def test_variable_frame_rate_keeps_the_times_in_the_video(tmp_path: Path) -> None:
    times = [0.0, 0.031, 0.2, 0.2001, 1.5]
    with RecordingWriter(tmp_path / "r", recording(variable_frame_rate=True)) as writer:
        for step, (frame, time_s) in enumerate(zip(noise(5), times, strict=True)):
            writer.append(frame, 0, step, time_s, NO_ACTION, 0, False)
    found = scan_video(tmp_path / "r" / "frames.mkv").times_s
    assert np.allclose(found, times, atol=0.0015)
    assert (np.diff(found) > 0).all()


def test_continuous_actions_are_kept(tmp_path: Path) -> None:
    meta = recording(actions=(), action_dim=2)
    with RecordingWriter(tmp_path / "r", meta) as writer:
        writer.append(noise(1)[0], 0, 0, 0.0, NO_ACTION, 0, False, [0.5, -1.0])
    assert read_steps(tmp_path / "r")["action_vector"].to_pylist() == [[0.5, -1.0]]


def test_an_error_keeps_what_was_written_as_incomplete(tmp_path: Path) -> None:
    frames = noise(10)

    def fail() -> None:
        with RecordingWriter(tmp_path / "r", recording()) as writer:
            for step, frame in enumerate(frames):
                writer.append(frame, 0, step, step / 4, 1, 1.0, False)
            raise RuntimeError("the game crashed")

    with pytest.raises(RuntimeError):
        fail()
    assert not read_recording(tmp_path / "r").complete
    assert not (tmp_path / "r" / STEPS_FILE).exists()
    assert read_steps(tmp_path / "r").num_rows == 10
    assert len(list(iter_frames(tmp_path / "r", recording()))) == 10


@pytest.mark.parametrize(
    ("frame", "action", "words"),
    [
        (np.zeros((24, 31, 3), np.uint8), 0, "not uint8"),
        (np.zeros((24, 32, 3), np.float32), 0, "not uint8"),
        (np.zeros((24, 32, 3), np.uint8), 2, "outside the vocabulary"),
        (np.zeros((24, 32, 3), np.uint8), -2, "outside the vocabulary"),
    ],
)
def test_what_does_not_fit_is_refused(
    tmp_path: Path, frame: np.ndarray, action: int, words: str
) -> None:
    def attempt() -> None:
        with RecordingWriter(tmp_path / "r", recording()) as writer:
            writer.append(frame, 0, 0, 0.0, action, 0, False)

    with pytest.raises(DataError, match=words):
        attempt()


def test_a_folder_that_holds_something_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(DataError, match="not empty"), RecordingWriter(tmp_path, recording()):
        pass
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_settings_that_the_format_cannot_hold(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="even"):
        RecordingWriter(tmp_path, recording(31, 24), "h264")
    with pytest.raises(ConfigError, match="fps"):
        RecordingWriter(tmp_path, dataclasses.replace(recording(), fps=1000.0))


def test_nothing_recorded_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no frames"), RecordingWriter(tmp_path / "r", recording()):
        pass


def test_no_clock_in_the_step_table(tmp_path: Path) -> None:
    write(tmp_path / "r", noise(3), recording())
    metadata = pq.ParquetFile(tmp_path / "r" / STEPS_FILE).metadata.metadata
    assert set(metadata) <= {b"iwm.steps.version", b"ARROW:schema"}

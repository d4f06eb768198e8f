"""Recordings and indexes as earlier versions wrote them, brought up to date."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from iwm.errors import DataError
from iwm.files import read_json, write_json
from iwm.gameplay.config import IngestConfig
from iwm.gameplay.ingest import ingest
from iwm.gameplay.migration import migrate_index, migrate_recording
from iwm.gameplay.schema import NO_ACTION, Recording, read_recording
from iwm.gameplay.writer import RecordingWriter

SERIAL = IngestConfig(executor="serial", max_quarantine_share=1.0)


def make(folder: Path) -> None:
    """Three episodes of ten frames."""
    recording = Recording(
        name=folder.name, source="procedural", game="toy", fps=10.0, width=32, height=24,
        actions=("left", "right"), licence="CC0-1.0",
    )  # fmt: skip
    noise = np.random.default_rng(0)
    with RecordingWriter(folder, recording) as writer:
        for frame in range(30):
            episode, step = divmod(frame, 10)
            image = noise.integers(0, 256, (24, 32, 3), dtype=np.uint8)
            action = NO_ACTION if step == 9 else frame % 2
            writer.append(image, episode, step, frame / 10, action, 0.0, False)


def bytes_of(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def index_1(index: Path) -> None:
    """Turn an index of version 2 into one of version 1, which had no counts."""
    document = read_json(index / "recordings.json")
    write_json(index / "recordings.json", {"version": 1, "recordings": document["recordings"]})


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    make(tmp_path / "data" / "toy")
    return tmp_path / "data" / "toy"


def test_a_recording_is_written_as_version_1_and_sealed_when_asked(recording: Path) -> None:
    before = bytes_of(recording)
    assert read_recording(recording).version == 1
    assert migrate_recording(recording, write=False) == 1
    assert bytes_of(recording) == before
    assert migrate_recording(recording) == 1
    after = bytes_of(recording)
    assert {name: after[name] for name in before if name != "recording.json"} == {
        name: content for name, content in before.items() if name != "recording.json"
    }
    assert read_json(recording / "recording.json")["version"] == 2
    assert read_recording(recording).version == 2
    assert migrate_recording(recording) is None
    if shutil.which("sha256sum"):
        done = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=recording, check=False)
        assert done.returncode == 0


def test_a_sealed_recording_gives_the_same_index(recording: Path, tmp_path: Path) -> None:
    ingest(tmp_path / "data", tmp_path / "one", SERIAL)
    migrate_recording(recording)
    ingest(tmp_path / "data", tmp_path / "two", SERIAL)
    one, two = (
        pq.read_table(tmp_path / which / "frames" / "toy.parquet") for which in ("one", "two")
    )
    assert one.equals(two)


def test_a_sealed_recording_whose_steps_changed_is_set_aside(
    recording: Path, tmp_path: Path
) -> None:
    migrate_recording(recording)
    table = pq.read_table(recording / "steps.parquet")
    pq.write_table(table.slice(0, table.num_rows - 1), recording / "steps.parquet")
    summary = ingest(tmp_path / "data", tmp_path / "index", SERIAL)
    assert (summary.recordings, summary.quarantined) == (0, 1)
    (reason,) = summary.reasons
    assert "its content is not what SHA256SUMS says" in reason


def test_only_whole_recordings_are_sealed(recording: Path) -> None:
    values = read_json(recording / "recording.json")
    write_json(recording / "recording.json", {**values, "complete": False})
    with pytest.raises(DataError, match="not complete"):
        migrate_recording(recording)
    write_json(recording / "recording.json", {**values, "version": 3})
    with pytest.raises(DataError, match="version 3 is newer"):
        migrate_recording(recording)
    write_json(recording / "recording.json", {**values, "version": 0})
    with pytest.raises(DataError, match="older than the oldest"):
        migrate_recording(recording)


def test_a_seal_stopped_half_way_is_made_anew(recording: Path) -> None:
    (recording / "SHA256SUMS").write_text("half")
    assert read_recording(recording).version == 1
    assert migrate_recording(recording) == 1
    assert "SHA256SUMS" not in (recording / "SHA256SUMS").read_text()


def test_an_index_brought_up_to_date_is_what_ingestion_writes_now(
    recording: Path, tmp_path: Path
) -> None:
    make(tmp_path / "data" / "other")
    (tmp_path / "data" / "loose").write_text("")
    index = tmp_path / "index"
    ingest(tmp_path / "data", index, SERIAL)
    now = bytes_of(index)
    index_1(index)
    assert migrate_index(index, write=False) == 1
    assert migrate_index(index) == 1
    assert bytes_of(index) == now
    assert migrate_index(index) is None
    document = read_json(index / "recordings.json")
    frames = sum(part["frames"] for part in document["counts"]["toy"].values())
    assert frames == document["recordings"]["toy"]["frames"] == 30


def test_an_index_of_the_earlier_version_says_what_to_do(recording: Path, tmp_path: Path) -> None:
    from iwm.data.expectations.tables import read_index

    index = tmp_path / "index"
    ingest(tmp_path / "data", index, SERIAL)
    index_1(index)
    with pytest.raises(DataError, match=r"version 1 is older .* run `iwm migrate`"):
        read_index(index)
    migrate_index(index)
    assert len(read_index(index).rows) == 30


def test_a_damaged_index_is_left_as_it_is(recording: Path, tmp_path: Path) -> None:
    index = tmp_path / "index"
    ingest(tmp_path / "data", index, SERIAL)
    index_1(index)
    (index / "frames" / "toy.parquet").write_bytes(b"PAR1")
    before = bytes_of(index)
    with pytest.raises(DataError, match=r"toy\.parquet: not readable"):
        migrate_index(index)
    assert bytes_of(index) == before

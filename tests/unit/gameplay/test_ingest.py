"""Ingestion: exact figures, every kind of damage set aside with its reason, stable bytes."""

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from iwm.errors import DataError
from iwm.files import read_json, write_json
from iwm.gameplay import ingest as module
from iwm.gameplay.config import IngestConfig
from iwm.gameplay.index import INDEX_SCHEMA, QUARANTINE_SCHEMA
from iwm.gameplay.ingest import ingest
from iwm.gameplay.quality import frame_statistics
from iwm.gameplay.schema import NO_ACTION, Recording, write_recording
from iwm.gameplay.splits import split_of
from iwm.gameplay.writer import RecordingWriter

SERIAL = IngestConfig(executor="serial", max_quarantine_share=1.0)
EPISODES, STEPS = 3, 10


def picture(number: int, width: int = 32, height: int = 24) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)


def make(folder: Path, width: int = 32, height: int = 24) -> Path:
    recording = Recording(
        name=folder.name, source="procedural", game="toy", fps=10.0, width=width, height=height,
        actions=("left", "right"), licence="CC0-1.0",
    )  # fmt: skip
    with RecordingWriter(folder, recording) as writer:
        for frame in range(EPISODES * STEPS):
            episode, step = divmod(frame, STEPS)
            last = step == STEPS - 1
            action = NO_ACTION if last else frame % 2
            image = picture(frame, width, height)
            writer.append(image, episode, step, frame / 10, action, 0.0, False)
    return folder


def rows(out: Path, name: str) -> list[dict]:
    return pq.ParquetFile(out / "frames" / f"{name}.parquet").read().to_pylist()


def quarantine(out: Path) -> list[dict]:
    table = pq.ParquetFile(out / "quarantine.parquet").read()
    assert table.schema.equals(QUARANTINE_SCHEMA)
    return table.to_pylist()


def change_steps(folder: Path, column: str, change: Callable[[list], None]) -> None:
    path = folder / "steps.parquet"
    table = pq.ParquetFile(path).read()
    values = table[column].to_pylist()
    change(values)
    index = table.column_names.index(column)
    field = table.schema.field(column)
    pq.write_table(table.set_column(index, field, pa.array(values, field.type)), path)


def put(index: int, value: object) -> Callable[[list], None]:
    return lambda values: values.__setitem__(index, value)


def test_rows_hold_the_steps_and_the_figures_of_their_own_frame(tmp_path: Path) -> None:
    make(tmp_path / "data" / "toy")
    summary = ingest(tmp_path / "data", tmp_path / "out", SERIAL)
    table = pq.ParquetFile(tmp_path / "out" / "frames" / "toy.parquet").read()
    assert table.schema.equals(INDEX_SCHEMA)
    assert table.schema.metadata[b"iwm.index.version"] == b"1"
    for frame, row in enumerate(table.to_pylist()):
        figures = frame_statistics(picture(frame))
        episode, step = divmod(frame, STEPS)
        assert row["key"] == f"toy/{episode:06d}/{step:06d}"
        assert (row["frame"], row["width"], row["height"]) == (frame, 32, 24)
        assert row["sha1"] == figures.sha1 == hashlib.sha1(picture(frame).tobytes()).digest()
        assert row["sharpness"] == pytest.approx(figures.sharpness, rel=1e-6)
        assert (row["status"], row["split"]) == ("ok", split_of("toy", episode, SERIAL.split))
    assert (summary.frames, summary.quarantined, summary.share) == (30, 0, 0.0)
    assert summary.split_episodes.total() == EPISODES
    document = read_json(tmp_path / "out" / "recordings.json")
    assert document["recordings"]["toy"]["actions"] == ["left", "right"]
    assert document["recordings"]["toy"]["frames"] == 30


@pytest.mark.parametrize("chunk", [7, 1024])
@pytest.mark.parametrize("executor", ["threads", "processes"])
def test_bytes_do_not_depend_on_executor_chunks_or_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, executor: str, chunk: int
) -> None:
    for name in ("a", "b"):
        make(tmp_path / "data" / name)
    ingest(tmp_path / "data", tmp_path / "one", SERIAL)
    monkeypatch.setattr(module, "CHUNK_FRAMES", chunk)
    cfg = IngestConfig(executor=executor, workers=2, max_quarantine_share=1.0)
    ingest(tmp_path / "data", tmp_path / "two", cfg)
    files = [path for path in (tmp_path / "one").rglob("*") if path.is_file()]
    assert len(files) == 4
    for path in files:
        other = tmp_path / "two" / path.relative_to(tmp_path / "one")
        assert path.read_bytes() == other.read_bytes()


def test_a_dask_cluster_gives_the_same_bytes(tmp_path: Path) -> None:
    from distributed import LocalCluster

    make(tmp_path / "data" / "toy")
    ingest(tmp_path / "data", tmp_path / "one", SERIAL)
    with LocalCluster(
        n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None
    ) as cluster:
        cfg = IngestConfig(executor="dask", dask_address=cluster.scheduler_address)
        ingest(tmp_path / "data", tmp_path / "two", cfg)
    name = "frames/toy.parquet"
    assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_unchanged_recordings_are_reused_and_removed_ones_forgotten(tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    make(data / "a")
    make(data / "b")
    change_steps(data / "a", "action", put(3, 9))
    first = ingest(data, out, SERIAL)
    before = {path.name: path.read_bytes() for path in out.rglob("*.*") if path.is_file()}
    again = ingest(data, out, SERIAL)
    assert (first.reused, again.reused) == (0, 2)
    assert again.reasons == first.reasons
    assert before == {path.name: path.read_bytes() for path in out.rglob("*.*") if path.is_file()}
    change_steps(data / "a", "reward", put(0, 5.0))
    assert ingest(data, out, SERIAL).reused == 1
    (data / "b").rename(tmp_path / "elsewhere")
    ingest(data, out, SERIAL)
    assert [path.name for path in (out / "frames").iterdir()] == ["a.parquet"]


def truncate(folder: Path) -> None:
    video = folder / "frames.mkv"
    os.truncate(video, video.stat().st_size // 2)


def damage_one_frame(folder: Path) -> None:
    video = folder / "frames.mkv"
    content = bytearray(video.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 64] = bytes(64)
    video.write_bytes(content)


def rewrite(folder: Path, **values: object) -> None:
    path = folder / "recording.json"
    write_json(path, read_json(path) | values)


# What is done to a recording of 30 frames; the frames set aside; a word of the reason.
BAD = {
    "truncated video": (truncate, range(10, 20), "ends after"),
    "a damaged frame": (damage_one_frame, range(1, 3), ""),
    "zero-byte video": (lambda f: (f / "frames.mkv").write_bytes(b""), [30], "cannot be read"),
    "no video": (lambda f: (f / "frames.mkv").unlink(), [30], "not found"),
    "other size": (lambda f: rewrite(f, width=64), [30], "32x24 is not the recording's 64x24"),
    "unknown action": (lambda f: change_steps(f, "action", put(4, 77)), [1], "unknown action 77"),
    "time not a number": (
        lambda f: change_steps(f, "time_s", put(4, float("nan"))), [1], "time is not a number"),
    "frame twice": (lambda f: change_steps(f, "frame", put(4, 3)), [1], "frame position"),
    "negative frame": (lambda f: change_steps(f, "frame", put(0, -5)), [1], "negative"),
    "step back": (lambda f: change_steps(f, "step", put(4, 2)), [1], "episode and step"),
    "log longer than video": (
        lambda f: change_steps(f, "frame", put(29, 40)), [1], "ends after 30 frames"),
    "zero-byte steps": (lambda f: (f / "steps.parquet").write_bytes(b""), [1], "not a step table"),
    "no steps": (lambda f: (f / "steps.parquet").unlink(), [1], "not found"),
    "no metadata": (lambda f: (f / "recording.json").unlink(), [1], "not a recording"),
    "metadata not JSON": (lambda f: (f / "recording.json").write_text("{"), [1], "not JSON"),
    "newer version": (lambda f: rewrite(f, version=99), [1], "newer"),
    "path outside": (lambda f: rewrite(f, frames_path="../good/frames.mkv"), [1], "leaves"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_damage_is_set_aside_with_its_reason_and_nothing_else_is_lost(
    tmp_path: Path, kind: str
) -> None:
    harm, lost, word = BAD[kind]
    make(tmp_path / "data" / "good")
    harm(make(tmp_path / "data" / "harmed"))
    out = tmp_path / "out"
    summary = ingest(tmp_path / "data", out, SERIAL)
    found = quarantine(out)
    assert {row["recording"] for row in found} == {"harmed"}
    assert sum(row["frames"] for row in found) == summary.quarantined
    assert summary.quarantined in lost
    assert all(word in row["reason"] for row in found)
    assert all(str(tmp_path) not in row["reason"] for row in found)
    assert all(row["status"] == "ok" for row in rows(out, "good"))
    if (out / "frames" / "harmed.parquet").exists():
        harmed = rows(out, "harmed")
        assert len(harmed) == 30
        assert sum(row["status"] != "ok" for row in harmed) == summary.quarantined
        whole = summary.quarantined == 30
        assert all((row["frame"] is None) == whole for row in found)
        for row in harmed:
            if row["status"] == "ok":
                assert row["sha1"] == hashlib.sha1(picture(row["frame"]).tobytes()).digest()


def test_frames_too_small_to_hash_are_set_aside(tmp_path: Path) -> None:
    make(tmp_path / "data" / "tiny", 4, 4)
    assert ingest(tmp_path / "data", tmp_path / "out", SERIAL).reasons == {
        "4x4 is smaller than 8x8": 30
    }


def test_image_folder_names_each_bad_file(tmp_path: Path) -> None:
    folder = tmp_path / "data" / "stills"
    frames = folder / "frames"
    frames.mkdir(parents=True)
    Image.fromarray(picture(0)).save(frames / "0.png")
    Image.fromarray(picture(1, 50, 40)).save(frames / "1.png")  # any size is welcome
    Image.fromarray(picture(2, 1, 1)).save(frames / "2.png")
    (frames / "3.png").write_bytes(b"")
    Image.fromarray(picture(4, 200, 100)).save(frames / "4.png")
    stills = [Image.fromarray(picture(n)) for n in (5, 6)]
    stills[0].save(frames / "5.gif", save_all=True, append_images=stills[1:])
    with open(os.fsencode(frames) + b"/6\xff.png", "wb") as handle:  # noqa: PTH123
        handle.write(b"not an image")
    count = 7
    write_recording(folder, Recording(
        name="stills", source="images", game="stills", fps=1.0, width=32, height=24,
        frames_path="frames", actions=(), licence="CC0-1.0",
    ))  # fmt: skip
    pq.write_table(
        pa.table({
            "episode": pa.array(range(count), pa.int32()),
            "step": pa.array([0] * count, pa.int32()),
            "time_s": [0.0] * count, "frame": list(range(count)),
            "action": pa.array([NO_ACTION] * count, pa.int32()),
            "action_vector": pa.array([None] * count, pa.list_(pa.float32())),
            "reward": pa.array([0.0] * count, pa.float32()), "done": [False] * count,
        }), folder / "steps.parquet",
    )  # fmt: skip
    cfg = IngestConfig(executor="serial", max_quarantine_share=1.0, max_pixels=10_000)
    ingest(tmp_path / "data", tmp_path / "out", cfg)
    index = rows(tmp_path / "out", "stills")
    good = [row for row in index if row["status"] == "ok"]
    assert [(row["frame"], row["width"]) for row in good] == [(0, 32), (1, 50)]
    assert [(row["file"], row["frame"]) for row in quarantine(tmp_path / "out")] == [
        ("frames/2.png", 2), ("frames/3.png", 3), ("frames/4.png", 4), ("frames/5.gif", 5),
        ("frames/6\\xff.png", 6),
    ]  # fmt: skip


def test_names_and_loose_files_that_are_no_recordings(tmp_path: Path) -> None:
    data = tmp_path / "data"
    make(data / "good")
    (data / "notes.txt").write_text("hello")
    (data / ".hidden").mkdir()
    os.mkdir(os.fsencode(data) + b"/bad\xff")  # noqa: PTH102
    summary = ingest(data, tmp_path / "out", SERIAL)
    found = {row["recording"]: row["reason"] for row in quarantine(tmp_path / "out")}
    assert found == {
        "bad\\xff": "the folder's name is not UTF-8",
        "notes.txt": "a loose file, not a recording's folder",
    }
    assert (summary.frames, summary.quarantined) == (31, 1)


def test_over_the_bound_it_stops_with_share_bound_and_reasons(tmp_path: Path) -> None:
    folder = make(tmp_path / "data" / "toy")
    change_steps(folder, "action", lambda values: values.__setitem__(slice(0, 3), [8, 8, 9]))
    cfg = IngestConfig(executor="serial", max_quarantine_share=0.05)
    with pytest.raises(DataError) as caught:
        ingest(tmp_path / "data", tmp_path / "out", cfg)
    message = str(caught.value)
    for part in ("3 of 30", "10.00 %", "bound of 5 %", "unknown action 8", "(2)"):
        assert part in message
    assert "\n" not in message
    assert len(quarantine(tmp_path / "out")) == 2
    assert not (tmp_path / "out" / "recordings.json").exists()


@pytest.mark.parametrize("exists", [True, False])
def test_nothing_to_ingest(tmp_path: Path, exists: bool) -> None:
    if exists:
        (tmp_path / "data").mkdir()
    with pytest.raises(DataError, match="iwm record"):
        ingest(tmp_path / "data", tmp_path / "out", SERIAL)


_FILL = """
import resource, sys
from pathlib import Path
from iwm.gameplay.config import IngestConfig
from iwm.gameplay.ingest import ingest
from pipelines._stage import run
paths = sys.argv[1:]
def command() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
    ingest(Path(paths[0]), Path(paths[1]), IngestConfig(executor="serial"))
sys.argv[1:] = []
run(command)
"""


def test_no_space_left_is_one_line_and_leaves_no_half_file(tmp_path: Path) -> None:
    make(tmp_path / "data" / "toy")
    program = [sys.executable, "-c", _FILL, str(tmp_path / "data"), str(tmp_path / "out")]
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    errors = [line for line in done.stderr.splitlines() if not line.startswith("ingest:")]
    assert len(errors) == 1
    assert errors[0].startswith("error: ")
    assert "toy.parquet: cannot be written: File too large" in errors[0]
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == []

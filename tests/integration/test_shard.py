"""record -> ingest -> shard, by the stages' own code on the procedural world."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from iwm.data.config import ShardConfig
from iwm.data.frames import resize_frame
from iwm.data.reader import ShardStore
from iwm.data.shards import write_shards
from iwm.errors import DataError
from iwm.gameplay.config import IngestConfig, RecordConfig, RecordPlan
from iwm.gameplay.ingest import ingest
from iwm.gameplay.reader import iter_frames
from iwm.gameplay.record import record
from iwm.gameplay.schema import read_recording

PLANS = tuple(
    RecordPlan(
        name=name, source="procedural", game="sprites", frames=300, frame_skip=1,
        width=80, height=64, max_episode_steps=15,
    )
    for name in ("one", "two.b")
)  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    record(folder / "data", RecordConfig(plans=PLANS, workers=1))
    ingest(folder / "data", folder / "index", IngestConfig(executor="serial"))
    return folder


def test_shards_hold_the_frames_of_the_recording(made: Path, tmp_path: Path) -> None:
    cfg = ShardConfig(format="png", width=40, height=32, workers=1)
    info = write_shards(made / "data", made / "index", tmp_path / "shards", cfg)
    assert sum(info.frames.values()) == 600
    store = ShardStore(tmp_path / "shards")
    folder = made / "data" / "two.b"
    frames = {
        decoded.frame: decoded.image for decoded in iter_frames(folder, read_recording(folder))
    }
    rows = np.flatnonzero(store.recording_ids == store.recordings.index("two.b"))
    assert len(rows) == 300
    images = store.decode(rows)
    for image, frame in zip(images, store.table["frame"].take(rows).to_pylist(), strict=True):
        np.testing.assert_array_equal(image, resize_frame(frames[frame], cfg))


def test_bytes_do_not_depend_on_the_workers(made: Path, tmp_path: Path) -> None:
    for workers in (1, 2):
        cfg = ShardConfig(frames_per_shard=128, workers=workers)
        write_shards(made / "data", made / "index", tmp_path / str(workers), cfg)
    for file in (tmp_path / "1").iterdir():
        assert file.read_bytes() == (tmp_path / "2" / file.name).read_bytes(), file.name


def test_a_dask_cluster_gives_the_same_bytes(made: Path, tmp_path: Path) -> None:
    from distributed import LocalCluster

    alone = ShardConfig(frames_per_shard=128, workers=1)
    write_shards(made / "data", made / "index", tmp_path / "alone", alone)
    with LocalCluster(
        n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None
    ) as cluster:
        cfg = replace(alone, executor="dask", dask_address=cluster.scheduler_address)
        write_shards(made / "data", made / "index", tmp_path / "dask", cfg)
    for file in (tmp_path / "alone").iterdir():
        assert file.read_bytes() == (tmp_path / "dask" / file.name).read_bytes(), file.name


def test_a_recording_that_changed_since_ingestion_is_named(made: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    for name in ("one", "two.b"):
        (data / name).mkdir(parents=True)
        for file in (made / "data" / name).iterdir():
            (data / name / file.name).write_bytes(file.read_bytes())
    video = data / "one" / "frames.mkv"
    video.write_bytes(video.read_bytes()[: video.stat().st_size // 2])
    with pytest.raises(DataError, match=r"one/frames.mkv: frame \d+: .* run `iwm ingest` again"):
        write_shards(data, made / "index", tmp_path / "shards", ShardConfig(workers=1))
    assert not (tmp_path / "shards").exists()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a small file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_is_full(made: Path, small_disk: Path) -> None:
    with pytest.raises(DataError, match="cannot write the shards: No space left on device"):
        write_shards(made / "data", made / "index", small_disk / "shards", ShardConfig(workers=1))
    assert list(small_disk.iterdir()) == []


def test_the_stage_is_a_command(made: Path, tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    command = [
        sys.executable, "-m", "pipelines.shard", "--data", str(made / "data"),
        "--index", str(made / "index"), "--out", str(tmp_path / "shards"),
    ]  # fmt: skip
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    assert "train" in done.stdout
    assert "600 frames" in done.stderr or "600/600" in done.stderr
    assert len(ShardStore(tmp_path / "shards")) == 600
    command[-3] = str(tmp_path / "nothing")
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1

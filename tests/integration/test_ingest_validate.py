"""The stages `ingest` and `validate` as commands, the way DVC runs them."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from iwm.config import resolve_profile, write_params
from iwm.files import read_json
from iwm.gameplay.schema import NO_ACTION, Recording
from iwm.gameplay.writer import RecordingWriter

ROOT = Path(__file__).parents[2]


def stage(folder: Path, name: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "100"}
    environment.pop("DVC_ROOT", None)
    return subprocess.run(
        [sys.executable, "-m", f"pipelines.{name}"],
        cwd=folder, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with params.yaml and one recording of 30 episodes."""
    folder = tmp_path_factory.mktemp("played")
    values = resolve_profile("smoke", profiles=ROOT / "profiles.yaml")
    write_params(values, folder / "params.yaml")
    recording = Recording(
        name="toy", source="procedural", game="toy", fps=10.0, width=32, height=24,
        actions=("left", "right"), licence="CC0-1.0",
    )  # fmt: skip
    random = np.random.default_rng(0)
    with RecordingWriter(folder / "data" / "toy", recording) as writer:
        for frame in range(300):
            episode, step = divmod(frame, 10)
            image = random.integers(0, 256, (24, 32, 3), dtype=np.uint8)
            action = NO_ACTION if step == 9 else int(random.integers(2))
            writer.append(image, episode, step, frame / 10, action, 0.0, False)
    return folder


@pytest.fixture
def workplace(played: Path, tmp_path: Path) -> Path:
    return shutil.copytree(played, tmp_path / "workplace")


def test_from_recording_to_verdict_and_back_to_a_failure(workplace: Path) -> None:
    ingested = stage(workplace, "ingest")
    assert ingested.returncode == 0, ingested.stderr
    assert "300/300" in ingested.stderr
    assert "set aside" in ingested.stdout

    validated = stage(workplace, "validate")
    assert validated.returncode == 0, validated.stderr
    verdict = read_json(workplace / "artifacts" / "validation" / "passed.json")
    assert verdict["passed"] is True
    counts = read_json(workplace / "artifacts" / "validation" / "actions.json")["counts"]
    assert sum(counts.values()) == 270
    report = read_json(workplace / "reports" / "validation.json")
    assert report["frames"] == 300
    assert all(finding["success"] for finding in report["expectations"])
    assert "<html" in (workplace / "reports" / "validation.html").read_text()

    # The next version of the data is black: it must not pass, nor become what is compared with.
    path = workplace / "params.yaml"
    path.write_text(path.read_text().replace("black_luma: 4.0", "black_luma: 255.0"))
    actions = (workplace / "artifacts" / "validation" / "actions.json").read_bytes()
    failed = stage(workplace, "validate")
    assert failed.returncode == 1
    errors = [line for line in failed.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert "black_frames: 1 against a bound of 0.05" in errors[0]
    assert not (workplace / "artifacts" / "validation" / "passed.json").exists()
    assert (workplace / "artifacts" / "validation" / "actions.json").read_bytes() == actions
    assert read_json(workplace / "reports" / "validation.json")["passed"] is False


def test_a_truncated_recording_stops_ingestion_in_one_line(workplace: Path) -> None:
    video = workplace / "data" / "toy" / "frames.mkv"
    os.truncate(video, video.stat().st_size // 2)
    done = stage(workplace, "ingest")
    assert done.returncode == 1
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert "over the bound of 2 %" in errors[0]
    assert "ends after" in errors[0]
    assert stage(workplace, "validate").returncode == 1


def test_no_data_is_one_line(tmp_path: Path, played: Path) -> None:
    shutil.copy(played / "params.yaml", tmp_path)
    done = stage(tmp_path, "ingest")
    assert done.returncode == 1
    assert done.stderr.strip() == "error: data: not found; `iwm record` makes it"

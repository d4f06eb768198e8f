"""Task functions by themselves, without a server."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
import toy
from prefect.logging import disable_run_logger

from flows import tasks
from flows.process import InfrastructureError, StageFailed, supervised

RECORDER = """\
import pathlib
pathlib.Path("data/recorded").mkdir(parents=True)
pathlib.Path("data/recorded/frames").write_text("f")
"""


@pytest.fixture
def outside_a_run() -> Iterator[None]:
    with disable_run_logger(), supervised("None"):
        yield


@pytest.fixture
def empty(repo: Path) -> Path:
    """No data, and a recorder that takes no time."""
    (repo / "data" / "a.txt").unlink()
    (repo / "pipelines").mkdir()
    (repo / "pipelines" / "__init__.py").touch()
    (repo / "pipelines" / "record.py").write_text(RECORDER)
    return repo


def names_what_lies_there(repo: Path) -> bool:
    command = [sys.executable, "-m", "dvc", "status", "--quiet", "data.dvc"]
    return subprocess.run(command, cwd=repo, check=False).returncode == 0


@pytest.mark.usefixtures("outside_a_run")
def test_data_is_recorded_when_there_is_none_and_always_named(empty: Path) -> None:
    tasks.ensure_data.fn()
    assert names_what_lies_there(empty)
    before = (empty / "data.dvc").read_text()

    # What a user adds is named as well; nothing is recorded again.
    (empty / "pipelines" / "record.py").write_text("raise SystemExit(1)")
    (empty / "data" / "mine").write_text("m")
    assert not names_what_lies_there(empty)
    tasks.ensure_data.fn()
    assert names_what_lies_there(empty)
    assert (empty / "data.dvc").read_text() != before


@pytest.mark.usefixtures("outside_a_run")
def test_a_recorder_that_fails_says_why(empty: Path) -> None:
    (empty / "pipelines" / "record.py").write_text("raise SystemExit('error: no such game')")
    with pytest.raises(StageFailed, match=r"^record failed: no such game$"):
        tasks.ensure_data.fn()
    (empty / "pipelines" / "record.py").write_text("")
    with pytest.raises(StageFailed, match="data/ is still empty"):
        tasks.ensure_data.fn()


@pytest.mark.usefixtures("outside_a_run")
def test_a_stage_by_itself(repo: Path) -> None:
    tasks.ensure_data.fn()
    toy.behave(repo, ingest="fail")
    with pytest.raises(StageFailed, match=r"^ingest failed: mrr\.model 0\.031"):
        tasks.run_stage.fn("ingest")
    toy.behave(repo, ingest="kill2")
    with pytest.raises(InfrastructureError, match="ingest was ended by SIGKILL"):
        tasks.run_stage.fn("ingest")
    assert tasks.run_stage.fn("ingest") == "ingest"
    assert len(toy.calls(repo, "ingest")) == 3
    tasks.run_stage.fn("ingest")
    assert len(toy.calls(repo, "ingest")) == 3
    tasks.run_stage.fn("ingest", force=True)
    assert len(toy.calls(repo, "ingest")) == 4


@pytest.mark.usefixtures("outside_a_run")
def test_a_profile_is_written(repo: Path) -> None:
    (repo / "profiles.yaml").write_bytes((toy.ROOT / "profiles.yaml").read_bytes())
    tasks.use_profile.fn("smoke")
    assert "\nprofile: smoke\n" in (repo / "params.yaml").read_text()
    with pytest.raises(StageFailed, match=r"^profile failed: profile 'x' is not in profiles\.yaml"):
        tasks.use_profile.fn("x")


def test_only_accelerator_stages_hold_the_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "has_gpu", lambda: True)
    assert isinstance(tasks.gpu_slot("shard", "always"), nullcontext)
    assert isinstance(tasks.gpu_slot("train@core", "never"), nullcontext)
    assert not isinstance(tasks.gpu_slot("train@core", "auto"), nullcontext)
    monkeypatch.setattr(tasks, "has_gpu", lambda: False)
    assert isinstance(tasks.gpu_slot("train@core", "auto"), nullcontext)
    assert not isinstance(tasks.gpu_slot("evaluate@core", "always"), nullcontext)

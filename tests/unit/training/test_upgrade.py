"""Checkpoints of the version before, damaged ones, and trainings that meet newer code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import trainruns as runs
from safetensors.torch import load_file
from typer.testing import CliRunner

from iwm import logs
from iwm.data.reader import ShardStore
from iwm.errors import ModelError, TrainingError
from iwm.files import read_json, write_json
from iwm.monitoring import board as boards
from iwm.monitoring import catalogue as c
from iwm.monitoring.board import Board
from iwm.monitoring.training import MetricsTracker
from iwm.training.checkpoint import checkpoints, migrate_checkpoint, read_state
from iwm.training.trainer import Trainer, code_revision

OVER: dict[str, Any] = {"max_steps": 6, "checkpoint_every": 2, "log_every": 1}


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> Any:
    """One thread, so that sums are the same to the last bit."""
    monkeypatch.delenv(logs.RUN_ID, raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def stopped(store: ShardStore, out: Path, step: int, *trackers: Any) -> Trainer:
    """A training that was asked to stop after ``step`` steps."""
    trainer = runs.make(store, out, **OVER)
    trainer.trackers += trackers
    after = trainer.model.after_step

    def stop(progress: float) -> None:
        after(progress)
        if round(progress * 6) == step:
            trainer.request_stop(15)

    trainer.model.after_step = stop  # type: ignore[method-assign]
    with pytest.raises(TrainingError, match=f"stopped at step {step} of 6"):
        trainer.fit()
    return trainer


def version_1(path: Path) -> dict[str, Any]:
    """Write a checkpoint's state as version 1 did: without sums and the id of the run."""
    state = read_json(path / "state.json")
    old = {"format_version": 1, "identity": state["identity"], "step": state["step"]}
    write_json(path / "state.json", old)
    return old


@pytest.fixture(scope="module")
def finished(tiny_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("finished")
    runs.make(ShardStore(tiny_shards), out, **OVER).fit()
    return out


def same(one: Path, two: Path) -> bool:
    a, b = (load_file(path / "model.safetensors") for path in (one, two))
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("migrated", [False, True])
def test_a_checkpoint_of_version_1_is_gone_on_with(
    migrated: bool,
    finished: Path,
    tiny_store: ShardStore,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    stopped(tiny_store, tmp_path, 3)
    path = checkpoints(tmp_path / "checkpoints")[-1]
    old = version_1(path)
    if migrated:
        assert migrate_checkpoint(path, write=False) == 1
        assert read_json(path / "state.json") == old
        assert migrate_checkpoint(path) == 1
        assert migrate_checkpoint(path) is None
        state = read_state(path)
        assert state["format_version"] == 2
        assert set(state["sha256"]) == {"model.safetensors", "optimizer.safetensors"}
    capsys.readouterr()
    runs.make(tiny_store, tmp_path, **OVER).fit()
    assert "going on from step 3 of 6" in capsys.readouterr().out
    assert same(tmp_path, finished)


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(
    finished: Path, tiny_store: ShardStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stopped(tiny_store, tmp_path, 4)
    older, newer = checkpoints(tmp_path / "checkpoints")
    weights = newer / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1  # one bit of one weight: safetensors would read it
    weights.write_bytes(content)
    capsys.readouterr()
    runs.make(tiny_store, tmp_path, **OVER).fit()
    said = capsys.readouterr()
    assert "is damaged and passed over: model.safetensors is not what was written" in said.out
    assert f"going on from step {int(older.name[-2:])} of 6" in said.out
    assert same(tmp_path, finished)


@pytest.mark.parametrize("content", ["", "[]", '{"format_ver'])
def test_a_broken_state_is_passed_over_too(
    content: str, tiny_store: ShardStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stopped(tiny_store, tmp_path, 4)
    older, newer = checkpoints(tmp_path / "checkpoints")
    (newer / "state.json").write_text(content)
    capsys.readouterr()
    stopped(tiny_store, tmp_path, 5)
    assert f"going on from step {int(older.name[-2:])} of 6" in capsys.readouterr().out


def test_a_training_goes_on_with_newer_code_when_its_owner_says_so(
    tiny_store: ShardStore,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from typer import Typer

    from pipelines.migrate import command

    out = tmp_path / "artifacts/models/core"
    stopped(tiny_store, out, 3)
    for path in checkpoints(out / "checkpoints"):
        old = version_1(path)
        code = {**old["identity"], "code": "0123456789abcdef"}
        write_json(path / "state.json", {**old, "identity": code})
    monkeypatch.chdir(tmp_path)
    app = Typer()
    app.command()(command)

    def migrate(*arguments: str) -> str:
        return CliRunner().invoke(app, list(arguments), catch_exceptions=False).output

    assert "version 1 -> 2" in migrate()
    assert "2 to be brought up to date" in migrate()
    assert "2 brought up to date, 0 up to date already" in migrate("--apply")
    assert "0 brought up to date, 2 up to date already" in migrate("--apply")
    assert "goes on" in migrate("--apply", "--keep-training")
    state = read_state(checkpoints(out / "checkpoints")[-1])
    assert state["earlier_code"] == ["0123456789abcdef"]
    assert state["identity"]["code"] == code_revision()
    capsys.readouterr()
    runs.make(tiny_store, out, **OVER).fit()
    assert "going on from step 3 of 6" in capsys.readouterr().out


def test_what_is_newer_or_too_old_is_left_alone(tiny_store: ShardStore, tmp_path: Path) -> None:
    stopped(tiny_store, tmp_path, 2)
    path = checkpoints(tmp_path / "checkpoints")[-1]
    state = read_json(path / "state.json")
    for version, words in ((3, "newer"), (0, "older than the oldest"), (None, "has no version")):
        write_json(path / "state.json", {**state, "format_version": version})
        with pytest.raises(ModelError, match=words):
            migrate_checkpoint(path)


def test_training_tells_prometheus_what_the_history_says(
    tiny_store: ShardStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(boards.FOLDER, str(tmp_path / "metrics"))
    monkeypatch.setenv(logs.RUN_ID, "tonight")
    out = tmp_path / "model"
    seen: list[float | None] = []

    class Look:
        """Reads the file while training runs."""

        def start(self, step: int, parameters: dict[str, Any]) -> None:
            pass

        def log(self, step: int, metrics: dict[str, float]) -> None:
            board = read()
            assert board.get(c.STEP, "tiny") == step
            assert board.get(c.LOSS, "tiny") == pytest.approx(metrics["loss"])
            assert board.get(c.FIGURE, "tiny", "grad_norm") == pytest.approx(metrics["grad_norm"])
            assert board.get(c.STEPS, "tiny") == 6
            seen.append(board.get(c.LEFT, "tiny"))

        def finish(self, status: str) -> None:
            pass

    def read() -> Board:
        board = Board("train_tiny")
        board.take_up(c.METRICS)
        return board

    stopped(tiny_store, out, 4, MetricsTracker("tiny", out), Look())
    assert len(seen) == 4
    assert all(left is not None and left > 0 for left in seen)
    board = read()
    assert board.get(c.RUNNING, "tiny") == 0
    assert board.get(c.LEFT, "tiny") is None
    saved = checkpoints(out / "checkpoints")[-1]
    assert board.get(c.CHECKPOINT, "tiny") == pytest.approx(saved.stat().st_mtime)
    assert read_state(saved)["run_id"] == "tonight"

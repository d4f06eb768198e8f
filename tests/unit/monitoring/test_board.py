"""Values on disk and over HTTP, as Prometheus reads them."""

from __future__ import annotations

import math
import urllib.request
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from iwm.errors import ConfigError
from iwm.monitoring import board as boards
from iwm.monitoring import catalogue as c
from iwm.monitoring.board import Board


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(boards.FOLDER, str(tmp_path / "metrics"))
    return tmp_path / "metrics"


def samples(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_the_catalogue_follows_the_rules() -> None:
    names = [metric.name for metric in c.METRICS]
    assert len(names) == len(set(names))
    for metric in c.METRICS:
        assert metric.help.endswith(".") or ":" in metric.help
        assert (metric.kind == "counter") == metric.name.endswith("_total")


def test_a_file_is_written_and_taken_up(folder: Path) -> None:
    board = Board("stage_train_core/../x")
    board.add(c.STAGE_RUNS, "train", 'a "b"\\', "done", amount=2)
    board.set(c.STAGE_SECONDS, math.inf, "train", "core")
    board.write()
    (file,) = folder.iterdir()
    assert file.name == "iwm_stage_train_core____x.prom"
    found = samples(file.read_text())
    labels = (("phase", 'a "b"\\'), ("result", "done"), ("stage", "train"))
    assert found["iwm_stage_runs_total", labels] == 2
    assert math.isnan(found["iwm_stage_duration_seconds", (("phase", "core"), ("stage", "train"))])
    again = Board("stage_train_core/../x")
    again.take_up((c.STAGE_RUNS,))
    again.add(c.STAGE_RUNS, "train", 'a "b"\\', "done")
    assert again.get(c.STAGE_RUNS, "train", 'a "b"\\', "done") == 3
    assert again.get(c.STAGE_SECONDS, "train", "core") is None


def test_a_broken_file_is_begun_anew(folder: Path) -> None:
    folder.mkdir()
    (folder / "iwm_x.prom").write_bytes(b"\xff{{{ not metrics")
    board = Board("x")
    board.take_up((c.STAGE_RUNS,))
    assert board.get(c.STAGE_RUNS, "a", "b", "done") is None


def test_without_a_folder_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(boards.FOLDER, raising=False)
    monkeypatch.chdir(tmp_path)
    board = Board("x")
    board.set(c.LOSS, 1.0, "core")
    board.write()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_takes_no_file_is_told_of_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(boards.FOLDER, str(tmp_path / "file"))
    board = Board("x")
    board.set(c.LOSS, 1.0, "core")
    board.write()
    board.write()
    assert capsys.readouterr().err.count("metrics not written") == 1


def test_http_answers_what_is_true_now(capsys: pytest.CaptureFixture[str]) -> None:
    board = Board("x")
    server = board.serve(0)
    try:
        address = f"http://127.0.0.1:{server.server_port}/metrics"
        for loss in (2.0, 1.5):
            board.set(c.LOSS, loss, "core")
            with urllib.request.urlopen(address) as answer:
                found = samples(answer.read().decode())
            assert found["iwm_training_loss", (("phase", "core"),)] == loss
        assert server.server_address[0] == "127.0.0.1"
        assert Board("y").serve(server.server_port) is None
        assert "goes without" in capsys.readouterr().err
    finally:
        server.shutdown()
        server.server_close()


def test_the_port_is_a_port(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(boards.PORT, raising=False)
    assert boards.port() is None
    monkeypatch.setenv(boards.PORT, "9101")
    assert boards.port() == 9101
    for wrong in ("0", "65536", "http"):
        monkeypatch.setenv(boards.PORT, wrong)
        with pytest.raises(ConfigError, match="IWM_METRICS_PORT: expected a port"):
            boards.port()


def test_the_folder_holds_whole_files_only(folder: Path) -> None:
    board = Board("x")
    for step in range(20):
        board.set(c.STEP, step, "core")
        board.write()
        assert [path.name for path in folder.iterdir()] == ["iwm_x.prom"]

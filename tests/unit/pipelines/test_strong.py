"""Longer runs: working copies that are whole or not there, and what is asked for."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from iwm.errors import ConfigError, GateFailed, IwmError
from pipelines import _copy, _repro
from pipelines.strong import RUNS, _prepare, command, figures

PARAMS = "params.yaml"


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A git checkout with a change that is not committed, data and artifacts."""
    folder = tmp_path / "checkout"
    files = {
        "src/a.py": "first",
        "src/gone.py": "first",
        "data.dvc": "the user's",
        PARAMS: "profile: cpu\n",
        ".gitignore": "/artifacts/\n/data\n",
        "artifacts/model": "large",
        "data/recording": "large",
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    identity = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
    for arguments in (["init", "--quiet"], ["add", "."], [*identity, "commit", "-qm", "first"]):
        subprocess.run(["git", *arguments], cwd=folder, check=True)
    (folder / "src/a.py").write_text("changed")
    (folder / "src/new.py").write_text("new")
    (folder / "src/gone.py").unlink()
    monkeypatch.chdir(folder)
    for name in ("PYTHONPATH", "BENTOML_HOME", "MLFLOW_TRACKING_URI"):
        monkeypatch.setenv(name, os.environ.get(name, ""))

    def use(*arguments: str, cwd: Path) -> None:
        assert arguments[:2] == ("pipelines.profile", "use")
        (cwd / PARAMS).write_text(yaml.safe_dump({"profile": arguments[2]}))

    monkeypatch.setattr(_repro, "module", use)
    return folder


def commit(folder: Path) -> str:
    done = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, check=True
    )
    return done.stdout


def test_a_copy_is_the_checkout_as_it_stands_without_its_data(
    checkout: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copies/doom"
    _prepare(copy, "strong-doom", update=False)
    files = {
        str(path.relative_to(copy)): path.read_text()
        for path in copy.rglob("*")
        if path.is_file() and ".git/" not in str(path)
    }
    assert files == {
        "src/a.py": "changed",
        "src/new.py": "new",
        ".gitignore": "/artifacts/\n/data\n",
        PARAMS: "profile: strong-doom\n",
    }
    assert commit(copy) == commit(checkout)


def test_a_copy_goes_on_as_it_is_unless_told_to_update(checkout: Path, tmp_path: Path) -> None:
    copy = tmp_path / "doom"
    _prepare(copy, "strong-doom", update=False)
    (copy / "artifacts").mkdir()
    (copy / "artifacts/checkpoint").write_text("half-way")
    (copy / "data.dvc").write_text("the copy's own")
    (checkout / "src/a.py").write_text("changed again")
    _prepare(copy, "strong-doom", update=False)
    assert (copy / "src/a.py").read_text() == "changed"
    _prepare(copy, "strong-doom", update=True)
    assert (copy / "src/a.py").read_text() == "changed again"
    assert (copy / "artifacts/checkpoint").read_text() == "half-way"
    assert (copy / "data.dvc").read_text() == "the copy's own"
    assert yaml.safe_load((copy / PARAMS).read_text()) == {"profile": "strong-doom"}


def test_a_copy_that_was_not_finished_is_not_there(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*arguments: str, cwd: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(_repro, "module", killed)
    with pytest.raises(KeyboardInterrupt):
        _prepare(tmp_path / "doom", "strong-doom", update=False)
    assert not (tmp_path / "doom").exists()


@pytest.mark.parametrize("held", [{}, {PARAMS: "profile: cpu\n"}, {"mine.txt": "mine"}])
def test_a_folder_of_another_kind_is_left_alone(
    checkout: Path, tmp_path: Path, held: dict[str, str]
) -> None:
    folder = tmp_path / "doom"
    folder.mkdir()
    for name, text in held.items():
        (folder / name).write_text(text)
    with pytest.raises(IwmError, match="no working copy of the profile strong-doom"):
        _prepare(folder, "strong-doom", update=True)
    assert {file.name: file.read_text() for file in folder.iterdir()} == held


def test_outside_a_checkout_it_says_where_to_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(IwmError, match="run this in the repository root"):
        _copy.copy_checkout(tmp_path / "copy")


def test_an_unknown_game_is_refused_before_anything_is_made(checkout: Path) -> None:
    with pytest.raises(ConfigError, match="no run 'chess'; there are doom, freeway, minigrid"):
        command(["doom", "chess"])
    assert not (checkout / "artifacts/strong").exists()


def test_the_games_run_one_after_the_other_each_in_its_copy(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    asked: list[tuple[str, str]] = []

    def repro(targets: list[str], cwd: Path) -> float:
        asked.append((targets[0], yaml.safe_load((cwd / PARAMS).read_text())["profile"]))
        return 1.0

    monkeypatch.setattr(_repro, "repro", repro)
    monkeypatch.setattr(_repro, "ensure_data", lambda folder: None)
    monkeypatch.setattr("pipelines.strong.figures", lambda phase, since: [f"a figure of {phase}"])
    command(["doom", "minigrid"], keep=tmp_path / "copies", update=False, export=None)
    doom = [(f"gate@{phase}", "strong-doom") for phase in RUNS["doom"].phases]
    assert asked == [*doom, ("gate@action", "strong-minigrid")]
    assert capsys.readouterr().out.count("a figure of action") == 2
    assert Path.cwd() == checkout

    asked.clear()
    command(["doom"], keep=tmp_path / "copies", update=False, export=None, phase=["vrnn"])
    assert asked == [("gate@vrnn", "strong-doom")]
    with pytest.raises(ConfigError, match="minigrid: no phase 'vrnn'; there are action"):
        command(["minigrid"], keep=tmp_path / "copies", phase=["vrnn"])


def test_a_missed_gate_is_told_at_the_end_and_keeps_no_other_phase_from_being_made(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def repro(targets: list[str], cwd: Path) -> float:
        if targets == ["gate@action"]:
            raise IwmError("`dvc repro gate@action` ended with code 255")
        return 1.0

    monkeypatch.setattr(_repro, "repro", repro)
    monkeypatch.setattr(_repro, "ensure_data", lambda folder: None)
    with pytest.raises(GateFailed, match="no gate passed for doom: action; see above"):
        command(["doom"], keep=tmp_path / "copies", export=tmp_path / "zoo")
    said = capsys.readouterr().out
    assert "action: NOT PASSED" in said
    assert "vrnn: passed" in said
    assert not (tmp_path / "zoo").exists()


def test_figures_are_the_gates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from iwm.files import write_json

    rule = {"figure": "mrr", "value": 0.93, "low": 0.92, "high": 0.94, "verdict": "pass"}
    rules = [{**rule, "threshold": 0.9}, {**rule, "baseline": "chance", "baseline_value": 0.45}]
    write_json(tmp_path / "reports/gates/action.json", {"rules": rules})
    monkeypatch.chdir(tmp_path)
    assert figures("vrnn") == []
    assert figures("action", since=time.time() + 60) == []
    assert figures("action") == [
        "mrr 0.93 [0.92, 0.94] against 0.9: pass",
        "mrr 0.93 [0.92, 0.94] against chance 0.45: pass",
    ]


def test_every_run_has_a_name_for_its_model_and_makes_it() -> None:
    assert len({run.model for run in RUNS.values()}) == len(RUNS)
    assert all("action" in run.phases for run in RUNS.values())

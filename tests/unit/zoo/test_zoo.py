"""Ready-made models by name; the wheel that carries them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from iwm import zoo
from iwm.errors import ModelError

ROOT = Path(__file__).parents[3]


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "zoo"
    for name in ("one-tiny", "two-tiny"):
        (folder / name).mkdir(parents=True)
        (folder / name / "model.safetensors").write_bytes(b"x" * 7)
        (folder / name / "card.json").write_text(json.dumps({"games": [name]}))
    (folder / "empty").mkdir()
    (folder / "__pycache__").mkdir()
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret/model.safetensors").write_bytes(b"x")
    monkeypatch.setenv("IWM_ZOO", str(folder))
    return folder


def test_names_are_folders_that_hold_weights(models: Path) -> None:
    assert zoo.names() == ("one-tiny", "two-tiny")
    assert zoo.path("two-tiny") == models / "two-tiny"
    assert [(model.name, model.size) for model in zoo.models()] == [
        ("one-tiny", 7),
        ("two-tiny", 7),
    ]


@pytest.mark.parametrize(
    "name", ["../secret", "one-tiny/../../secret", "", ".", "..", "empty", "/", "One-Tiny", "a\0"]
)
def test_a_name_is_looked_up_and_never_joined(models: Path, name: str) -> None:
    with pytest.raises(ModelError, match="there are: one-tiny, two-tiny"):
        zoo.path(name)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text())
def test_no_text_leads_out_of_the_zoo(models: Path, name: str) -> None:
    if name in zoo.names():
        return
    with pytest.raises(ModelError):
        zoo.path(name)


def test_an_empty_zoo_says_where_it_looked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IWM_ZOO", str(tmp_path / "none"))
    with pytest.raises(ModelError, match=f"none in {tmp_path}"):
        zoo.path("doom-tiny")


def test_a_damaged_card_is_named(models: Path) -> None:
    (models / "one-tiny/card.json").write_text("{")
    with pytest.raises(ModelError, match=r"one-tiny/card\.json: cannot be read"):
        zoo.models()


def test_without_the_variable_it_is_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("IWM_ZOO", raising=False)
    assert zoo.root() == ROOT / "src/iwm/zoo"
    for model in zoo.models():
        assert model.size <= zoo.MAX_WEIGHTS_BYTES
        assert model.card["gate"]["passed"]
        held = {"config.json", "calibration.json", "gate.json", "metrics.json", "README.md"}
        assert held <= {file.name for file in model.folder.iterdir()}


def test_the_wheel_carries_the_models_and_the_service(tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("src", "pipelines", "bentos", "flows"):
        shutil.copytree(ROOT / name, checkout / name, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE", ".gitignore"):
        shutil.copy2(ROOT / name, checkout / name)
    made = checkout / "src/iwm/zoo/made-up"
    made.mkdir()
    for name in ("model.safetensors", "config.json", "README.md", "loss.png"):
        (made / name).write_bytes(b"x")
    subprocess.run(
        [
            sys.executable,
            "-m",
            "build",
            "--wheel",
            "--no-isolation",
            "--outdir",
            tmp_path,
            checkout,
        ],
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    held = set(zipfile.ZipFile(wheel).namelist())
    assert {f"iwm/zoo/made-up/{file.name}" for file in made.iterdir()} <= held
    assert {"bentos/iwm.py", "bentos/bentofile.yaml", "flows/train.py"} <= held
    assert "pipelines/templates/model_card.md.j2" in held

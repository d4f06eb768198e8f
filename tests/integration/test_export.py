"""`iwm export`: what a ready-made model's folder holds, and what is refused."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from fixtures import write_store
from tinymodel import write_phase

from iwm import zoo
from iwm.errors import ConfigError, GateFailed, ModelError
from iwm.files import read_json, write_json
from iwm.serving.engine import Engine
from iwm.serving.page.bank import read_bank
from pipelines import export
from pipelines.export import export_model


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout in which `gate@core` has just passed, with two pictures."""
    write_phase(tmp_path)
    write_store(tmp_path / "artifacts/shards")
    training = tmp_path / "artifacts/models/core/training.json"
    facts = {"steps": 1128, "seconds": 227.3, "device": "cpu", "parameters": 1_695_633}
    write_json(training, {**facts, "identity": {"train": {"epochs": 8}}})
    for name, size in (("loss.png", 100), ("large.png", export.MAX_PICTURE_BYTES + 1)):
        (tmp_path / "artifacts/evaluation/core" / name).write_bytes(b"x" * size)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("IWM_ZOO", str(tmp_path / "zoo"))
    return tmp_path


def test_a_packed_model_can_be_served_and_is_listed(checkout: Path) -> None:
    assert export_model("core", checkout / "zoo/made-tiny") == checkout / "zoo/made-tiny"
    folder = zoo.path("made-tiny")
    assert {file.name for file in folder.iterdir()} == {
        "config.json",
        "model.safetensors",
        "calibration.json",
        "card.json",
        "gate.json",
        "metrics.json",
        "README.md",
        "loss.png",
        "bank.json",
    }
    engine = Engine.load(folder, "cpu")
    assert engine.calibration is not None
    assert read_bank(folder, engine.latent_dim)["frames"]
    (listed,) = zoo.models()
    assert listed.card["model"] == "made-tiny"
    assert listed.card["games"] == ["square"]
    assert listed.card["licence"] == ["MIT", "CC0-1.0"]
    assert listed.card["gate"]["passed"]


def test_the_model_card_tells_recipe_figures_licence_and_limits(checkout: Path) -> None:
    card = (export_model("core", checkout / "made-tiny") / "README.md").read_text()
    for line in (
        "# made-tiny",
        "iwm serve --model made-tiny",
        "| trained parameters | 1,695,633 |",
        "| `mrr.model` | 0.5 [0.49, 0.51] | mrr.chance 0.0239 | > 0.1195 | pass |",
        "![loss](loss.png)",
        "1,128 steps in 3.8 minutes on cpu.",
        "epochs: 8",
        "- CC0-1.0",
        "- It knows square and nothing else.",
    ):
        assert line in card, line
    assert "large.png" not in card


def test_packing_again_replaces_the_folder_as_a_whole(checkout: Path) -> None:
    folder = export_model("core", checkout / "made-tiny")
    (folder / "old.txt").write_text("old")
    export_model("core", folder)
    assert not (folder / "old.txt").exists()


def test_what_failed_its_gate_is_not_packed(checkout: Path) -> None:
    shutil.rmtree(checkout / "artifacts/models")
    write_phase(checkout, passed=False)
    with pytest.raises(GateFailed, match="the gate failed"):
        export_model("core", checkout / "made-tiny")
    assert not (checkout / "made-tiny").exists()


def test_what_is_too_large_is_not_packed(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zoo, "MAX_WEIGHTS_BYTES", 1000)
    with pytest.raises(ModelError, match="a ready-made model has at most"):
        export_model("core", checkout / "made-tiny")


@pytest.mark.parametrize("name", ["Made", "made_tiny", "made tiny", "-made"])
def test_a_name_that_could_not_be_served_is_refused(checkout: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="no name for a model"):
        export_model("core", checkout / name)


def test_a_folder_of_something_else_is_left_alone(checkout: Path) -> None:
    (checkout / "made").mkdir()
    (checkout / "made/mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match="holds something that is no model"):
        export_model("core", checkout / "made")
    assert (checkout / "made/mine.txt").read_text() == "mine"


def test_the_commands(checkout: Path) -> None:
    iwm = Path(sys.executable).with_name("iwm")
    packed = subprocess.run(
        [iwm, "export", "core", "zoo/made-tiny"], capture_output=True, text=True, check=True
    )
    assert packed.stdout.startswith("zoo/made-tiny: ")
    listed = subprocess.run([iwm, "models"], capture_output=True, text=True, check=True)
    assert "made-tiny" in listed.stdout
    assert "square" in listed.stdout
    assert read_json(checkout / "zoo/made-tiny/card.json")["model"] == "made-tiny"
    refused = subprocess.run(
        [iwm, "serve", "--model", "../made"], capture_output=True, text=True, check=False
    )
    assert refused.returncode == 1
    assert refused.stderr == "error: no ready-made model '../made'; there are: made-tiny\n"

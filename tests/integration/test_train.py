"""The stages train, evaluate and gate as the graph runs them, on small real shards."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file

from iwm.config import resolve_profile, write_params

ROOT = Path(__file__).parents[2]
SHAPE = {"width": 32, "depth": 1, "heads": 2}


@pytest.fixture
def checkout(tiny_shards: Path, tmp_path: Path) -> Path:
    """A folder with shards and parameters of a run of 12 steps."""
    overrides: dict[str, Any] = {
        "train.core.model": {
            "name": "iwm",
            "encoder": {"patch": 16, **SHAPE},
            "predictor": SHAPE,
            "objective": {"inverse": 1.0, "variance": 1.0},
        },
        "train.core.epochs": 2,
        "train.core.batch_size": 48,
        "train.core.log_every": 2,
        "train.core.device": "cpu",
        "evaluate.core": {"images": 6, "bank": 16, "queries": 4, "bootstrap": 100},
    }
    values = resolve_profile(
        "smoke", overrides=overrides, profiles=ROOT / "profiles.yaml", environ={}
    )
    write_params(values, tmp_path / "params.yaml")
    shutil.copytree(tiny_shards, tmp_path / "artifacts/shards")
    return tmp_path


def stage(folder: Path, name: str, **environ: str) -> subprocess.CompletedProcess[str]:
    keep = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW")}
    return subprocess.run(
        [sys.executable, "-m", f"pipelines.{name}", "core"],
        cwd=folder,
        env={**keep, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environ},
        capture_output=True,
        text=True,
        check=False,
    )


def edit(folder: Path, **values: Any) -> None:
    path = folder / "params.yaml"
    params = yaml.safe_load(path.read_text())
    for key, value in values.items():
        section, _, name = key.partition("__")
        if name:
            params[section]["core"][name] = value
        else:
            params[section]["core"] = value
    path.write_text(yaml.safe_dump(params))


def test_train_evaluate_gate(checkout: Path) -> None:
    trained = stage(checkout, "train")
    assert trained.returncode == 0, trained.stderr
    assert "train core: done, 12 steps" in trained.stdout
    assert "samples/s" in trained.stdout
    model = checkout / "artifacts/models/core"
    done = json.loads((model / "training.json").read_text())
    assert done["profile"] == "smoke"
    assert done["vocabulary"]
    assert (model / "views.png").exists()

    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{checkout}/mlruns/mlflow.db")
    run = client.get_run(done["run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.params["train.batch_size"] == "48"
    assert run.data.tags["data.shards_revision"] == done["data_revision"]
    assert run.data.metrics["loss"] == pytest.approx(done["metrics"]["loss"])
    assert len(client.get_metric_history(done["run_id"], "loss")) == 6

    evaluated = stage(checkout, "evaluate")
    assert evaluated.returncode == 0, evaluated.stderr
    assert "chance" in evaluated.stdout
    metrics = json.loads((checkout / "reports/metrics/core.json").read_text())
    for arm in ("model", "chance", "identity", "null_action", "shuffled_action"):
        assert {"mean", "low", "high", "n"} == set(metrics["mrr"][arm])
    pictures = {path.name for path in (checkout / "artifacts/evaluation/core").glob("*.png")}
    assert pictures == {"loss.png", "ranks.png", "calibration.png", "neighbours.png"}
    kept = {item.path for item in client.list_artifacts(done["run_id"], "pictures")}
    assert "pictures/views.png" in kept
    assert "pictures/neighbours.png" in kept

    rules = [{"figure": "mrr.model", "baseline": "mrr.chance", "times": 100.0}]
    edit(checkout, gate=rules)
    gated = stage(checkout, "gate")
    assert gated.returncode == 1
    assert gated.stderr.startswith("error: gate core failed: mrr.model ")
    assert gated.stderr.count("\n") == 1
    report = json.loads((checkout / "reports/gates/core.json").read_text())
    assert report["passed"] is False
    assert report["weights_sha256"] == metrics["weights_sha256"]
    edit(checkout, gate=[{"figure": "collapse.effective_rank", "above": 0.5}])
    assert stage(checkout, "gate").returncode == 0

    weights = load_file(model / "model.safetensors")
    again = stage(checkout, "train")
    assert "already done" in again.stdout
    assert weights.keys() == load_file(model / "model.safetensors").keys()


def test_what_is_missing_or_does_not_fit_is_one_line(checkout: Path) -> None:
    def refused(name: str, *words: str) -> None:
        result = stage(checkout, name)
        assert result.returncode == 1
        last = result.stderr.splitlines()[-1]
        assert last.startswith("error: "), result.stderr
        assert all(word in last for word in words), last

    refused("evaluate", "training.json: not found", "iwm train core")
    refused("gate", "metrics/core.json: not found", "iwm evaluate core")
    edit(checkout, train__model={"name": "iwm", "image_size": [96, 96]})
    refused("train", "[96, 96]", "[64, 64]")
    edit(checkout, train__model={"name": "dreamer"})
    refused("train", "dreamer", "known: action, embodied, iwm")
    edit(checkout, train__model={"name": "iwm", "encoder": {"depht": 2}})
    refused("train", "depht")
    shutil.rmtree(checkout / "artifacts/shards")
    refused("train", "shards")


@pytest.mark.slow
def test_one_command_trains_in_several_processes(checkout: Path) -> None:
    """The stage starts torchrun itself, as a flow that spreads it over cards asks it to."""
    path = checkout / "params.yaml"
    params = yaml.safe_load(path.read_text())
    params["train"]["core"]["model"]["predictor"]["dropout"] = 0.0  # drawn apart in each process
    path.write_text(yaml.safe_dump(params))
    alone = stage(checkout, "train")
    assert alone.returncode == 0, alone.stderr
    (checkout / "artifacts/models/core").rename(checkout / "alone")
    spread = stage(checkout, "train", IWM_PROCESSES="2")
    assert spread.returncode == 0, spread.stderr
    assert spread.stdout.count("train core: done, 12 steps") == 1
    one, two = (
        json.loads((folder / "training.json").read_text())["metrics"]["loss"]
        for folder in (checkout / "alone", checkout / "artifacts/models/core")
    )
    assert two == pytest.approx(one, abs=1e-3)
    assert "Invalid value" in stage(checkout, "train", IWM_PROCESSES="0").stderr

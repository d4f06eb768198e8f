"""The stages of the embodied model, as the graph runs them, on a few small episodes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from tinymodel import tiny_action_model

from iwm.agents.codec import TrajectoryCodec
from iwm.config import resolve_profile, write_params
from iwm.data.reader import ShardStore
from iwm.data.trajectories import TrajectoryStore
from iwm.files import write_json
from iwm.models.registry import create_model, load_model

ROOT = Path(__file__).parents[2]
TINY = {"latent_dim": 16, "hidden_dim": 16, "step_dim": 32, "horizon": 10}
FORETELL = {"bootstrap": 100, "trajectories": {"horizon": 10, "report": [1, 5, 10]}}


@pytest.fixture
def checkout(tiny_shards: Path, tmp_path: Path) -> Path:
    """A folder with shards and parameters of short runs."""
    overrides: dict[str, Any] = {
        "trajectories.particles.particles": {"episodes": 60, "steps": 20, "bodies": 2},
        "train.embodied.model": {"name": "embodied", **TINY},
        "train.embodied-latents.model": {"name": "embodied", **TINY},
        "evaluate.embodied": FORETELL,
    }
    for phase in ("embodied", "embodied-latents"):
        overrides |= {
            f"train.{phase}.epochs": 2,
            f"train.{phase}.batch_size": 8,
            f"train.{phase}.window": 11,
            f"train.{phase}.log_every": 2,
            f"train.{phase}.device": "cpu",
        }
    values = resolve_profile(
        "smoke", overrides=overrides, profiles=ROOT / "profiles.yaml", environ={}
    )
    write_params(values, tmp_path / "params.yaml")
    shutil.copytree(tiny_shards, tmp_path / "artifacts/shards")
    return tmp_path


def stage(folder: Path, name: str, phase: str) -> subprocess.CompletedProcess[str]:
    keep = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW")}
    return subprocess.run(
        [sys.executable, "-m", f"pipelines.{name}", phase],
        cwd=folder,
        env={**keep, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def succeed(folder: Path, name: str, phase: str) -> str:
    result = stage(folder, name, phase)
    assert result.returncode == 0, result.stderr
    return result.stdout


def refused(folder: Path, name: str, phase: str, *words: str) -> None:
    result = stage(folder, name, phase)
    assert result.returncode == 1
    last = result.stderr.splitlines()[-1]
    assert last.startswith("error: "), result.stderr
    assert all(word in last for word in words), last


def test_from_particles_to_a_gate_and_the_registry(checkout: Path) -> None:
    refused(checkout, "train", "embodied", "trajectories.json: not found", "iwm trajectories")
    refused(checkout, "trajectories", "nothing", "trajectories.nothing: not in params.yaml")
    assert "states of 8 numbers, 2 of an action" in succeed(checkout, "trajectories", "particles")
    assert "train embodied: done" in succeed(checkout, "train", "embodied")
    folder = checkout / "artifacts/models/embodied"
    model = load_model(folder)
    assert model.config.state_names[:4] == ("body0.x", "body0.y", "body0.vx", "body0.vy")
    assert TrajectoryCodec.load(folder).state_dim == 8
    store = TrajectoryStore(checkout / "artifacts/trajectories/particles")
    assert model.state_mean == pytest.approx(store.statistics()[0])

    assert "steps foretold within 0.25" in succeed(checkout, "evaluate", "embodied")
    metrics = json.loads((checkout / "reports/metrics/embodied.json").read_text())
    assert metrics["data_revision"] == store.info.revision
    for section in ("accuracy", "rmse", "explained"):
        for arm in ("model", "persistence", "constant_velocity", "linear", "wrong_action"):
            assert {"mean", "low", "high", "n"} == set(metrics[section][arm])
    assert set(metrics["accuracy_at"]) == {"k1", "k5", "k10"}
    assert 0 <= metrics["intentions"]["fidelity"]["mean"] <= 1
    pictures = {path.name for path in (checkout / "artifacts/evaluation/embodied").glob("*.png")}
    assert pictures == {"loss.png", "paths.png", "horizon.png", "calibration.png"}

    path = checkout / "params.yaml"
    params = yaml.safe_load(path.read_text())
    params["gate"]["embodied"] = [{"figure": "accuracy.model", "above": 1.0}]
    path.write_text(yaml.safe_dump(params))
    refused(checkout, "gate", "embodied", "gate embodied failed: accuracy.model")
    params["gate"]["embodied"] = [{"figure": "rmse.model", "above": 0.0}]
    path.write_text(yaml.safe_dump(params))
    succeed(checkout, "gate", "embodied")
    assert "champion" in succeed(checkout, "register", "embodied")

    import mlflow

    store_uri = f"sqlite:///{checkout}/mlruns/mlflow.db"
    mlflow.set_tracking_uri(store_uri)
    mlflow.set_registry_uri(store_uri)
    registered = mlflow.pyfunc.load_model("models:/iwm-embodied@champion")
    window = store.windows(np.array([0, 1]), 5)
    given = {"state": window.states[:, 0].numpy(), "actions": window.actions[:, :4].numpy()}
    told = model.predict(window.states[:, 0], window.actions[:, :4]).numpy()
    np.testing.assert_array_equal(registered.predict(given), told)

    params["train"]["embodied"]["model"]["state_dim"] = 9
    path.write_text(yaml.safe_dump(params))
    refused(checkout, "train", "embodied", "state_dim is 9", "holds 8")


def test_the_same_stages_learn_from_latents(checkout: Path) -> None:
    store = ShardStore(checkout / "artifacts/shards")
    shape = dict(tiny_action_model().config.encoder.__dict__)
    model = create_model(
        "action",
        image_size=list(store.image_shape[:2]),
        vocabulary=list(store.all_actions()),
        encoder={**shape, "patch": 16},
        dynamics={"width": 16, "heads": 2, "depth": 1, "patch_depth": 1},
    )
    model.save_pretrained(checkout / "artifacts/models/action")
    write_json(checkout / "artifacts/models/action/training.json", {"steps": 1})
    succeed(checkout, "trajectories", "latents")
    made = TrajectoryStore(checkout / "artifacts/trajectories/latents")
    assert made.info.state_dim == 16
    assert made.info.vocabulary == store.all_actions()
    rows = {split: sum(i.states for i in made.info.episodes if i.split == split)
            for split in ("train", "val", "test")}  # fmt: skip
    assert all(0 < rows[split] <= store.info.frames[split] for split in rows)
    assert "train embodied-latents: done" in succeed(checkout, "train", "embodied-latents")
    loaded = load_model(checkout / "artifacts/models/embodied-latents")
    assert loaded.config.vocabulary == made.info.vocabulary

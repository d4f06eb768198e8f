"""The stages of the variational recurrent model, as the graph runs them, on small real shards."""

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

from iwm.config import merge, resolve_profile, write_params

ROOT = Path(__file__).parents[2]


@pytest.fixture
def checkout(tiny_shards: Path, tmp_path: Path) -> Path:
    """A folder with shards and parameters of a run of four steps."""
    overrides: dict[str, Any] = {
        "evaluate.vrnn": {"bootstrap": 100, "batch_size": 8, "vrnn": {"windows": 16, "draws": 1}},
        "gate.vrnn": [{"figure": "effective_components", "above": 1.5}],
    }
    for phase in ("vrnn-trunk", "vrnn", "vrnn-single"):
        overrides |= {f"train.{phase}.max_steps": 4, f"train.{phase}.log_every": 2}
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


def imagines_from_the_registry(checkout: Path) -> None:
    """The registered version foretells what the trained one does."""
    import mlflow
    import numpy as np
    import torch

    from iwm.models.registry import load_model

    store = f"sqlite:///{checkout}/mlruns/mlflow.db"
    mlflow.set_tracking_uri(store)
    mlflow.set_registry_uri(store)
    released = mlflow.pyfunc.load_model("models:/iwm-vrnn@champion")
    model = load_model(checkout / "artifacts/models/vrnn")
    height, width = model.config.image_size
    frames = np.random.default_rng(0).integers(0, 256, (2, 3, height, width, 3), np.uint8)
    actions = np.array([[0, 1, 1, 0, 1], [1, 0, 0, 0, 1]])
    seen = released.predict({"frames": frames, "actions": actions})
    assert (seen.shape, seen.dtype) == ((2, 3, height, width, 3), np.uint8)
    vectors = model.action_vectors(torch.from_numpy(actions))
    own = model.rollout(torch.from_numpy(frames).permute(0, 1, 4, 2, 3), vectors, 3, "mean").frames
    assert own is not None
    expected = (own * 255).round().byte().permute(0, 1, 3, 4, 2).numpy()
    np.testing.assert_array_equal(seen, expected)
    large = frames.repeat(2, axis=2).repeat(2, axis=3)
    assert released.predict({"frames": large, "actions": actions}).shape == seen.shape


def test_both_priors_are_trained_and_held_against_each_other(checkout: Path) -> None:
    for phase in ("vrnn-trunk", "vrnn", "vrnn-single"):
        trained = stage(checkout, "train", phase)
        assert trained.returncode == 0, trained.stderr
        assert f"train {phase}: done, 4 steps" in trained.stdout
    shapes = {
        phase: json.loads((checkout / f"artifacts/models/{phase}/config.json").read_text())
        for phase in ("vrnn", "vrnn-single")
    }
    components = {name: found["settings"]["max_components"] for name, found in shapes.items()}
    assert components == {"vrnn": 15, "vrnn-single": 1}
    assert shapes["vrnn"]["settings"]["action_dim"] == 0
    assert shapes["vrnn"]["settings"]["vocabulary"]

    evaluated = stage(checkout, "evaluate", "vrnn")
    assert evaluated.returncode == 0, evaluated.stderr
    assert "held-out ELBO over a single Gaussian prior" in evaluated.stdout
    metrics = json.loads((checkout / "reports/metrics/vrnn.json").read_text())
    for section, figure in (
        ("elbo", "gain"),
        ("elbo", "gain_kl_z"),
        ("open_loop", "gain"),
        ("open_loop", "gain_wrong_action"),
        ("reconstruction", "psnr"),
    ):
        assert {"mean", "low", "high", "n"} == set(metrics[section][figure])
    assert metrics["open_loop"]["k8"]["gain"]["n"] > 0
    folder = checkout / "artifacts/evaluation/vrnn"
    assert {path.stem for path in folder.glob("*.png")} == {
        "reconstructions",
        "attention",
        "components",
        "imagined",
        "loss",
    }
    surprise = json.loads((folder / "calibration.json").read_text())["kl_z"]
    assert 0 < surprise["0.5"] <= surprise["0.95"] <= surprise["0.99"]
    gated = stage(checkout, "gate", "vrnn")
    assert gated.returncode == 0, gated.stderr
    registered = stage(checkout, "register", "vrnn")
    assert registered.returncode == 0, registered.stderr
    assert "champion" in registered.stdout
    imagines_from_the_registry(checkout)

    path = checkout / "params.yaml"
    for change, name in (
        ({"seed": 5}, "seed"),
        ({"model": {"loss": {"sigma": 0.5}}}, "model.loss"),
    ):
        params = yaml.safe_load(path.read_text())
        twin = params["train"]["vrnn-single"]
        path.write_text(
            yaml.safe_dump(merge(params, {"train": {"vrnn-single": merge(twin, change)}}))
        )
        refused = stage(checkout, "evaluate", "vrnn")
        path.write_text(yaml.safe_dump(params))
        assert refused.returncode == 1
        said = refused.stderr.splitlines()[-1]
        assert f"train.vrnn-single.{name} differs from train.vrnn.{name}" in said

"""A checkout with a real, empty MLflow store."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from pipelines._mlflow import configure

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty tracking store; making its tables takes seconds, so tests copy it."""
    folder = tmp_path_factory.mktemp("store")
    before = Path.cwd()
    os.chdir(folder)
    try:
        configure()
    finally:
        os.chdir(before)
    return folder / "mlruns"


@pytest.fixture
def checkout(tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout in which `gate@core` has just passed."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("BENTOML_HOME", str(tmp_path / "bentoml"))
    for variable in [name for name in os.environ if name.startswith("IWM_")]:
        monkeypatch.delenv(variable)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(store, tmp_path / "mlruns")
    shutil.copy2(ROOT / "params.yaml", tmp_path)
    return tmp_path

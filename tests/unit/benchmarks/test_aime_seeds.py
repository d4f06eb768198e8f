"""Seeds of AIME and its twin, trained by the stages."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import aime_seeds
from iwm.config import resolve_profile, write_params

ROOT = Path(__file__).parents[3]


@pytest.mark.slow
def test_each_seed_trains_both_priors_and_has_its_row(
    tiny_shards: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    overrides: dict[str, Any] = {
        "evaluate.vrnn": {"bootstrap": 100, "batch_size": 8, "vrnn": {"windows": 16, "draws": 1}},
    }
    for phase in ("vrnn-trunk", "vrnn", "vrnn-single"):
        overrides |= {f"train.{phase}.max_steps": 2, f"train.{phase}.log_every": 2}
    values = resolve_profile(
        "smoke", overrides=overrides, profiles=ROOT / "profiles.yaml", environ={}
    )
    write_params(values, tmp_path / "params.yaml")
    shutil.copytree(tiny_shards, tmp_path / "artifacts/shards")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
        monkeypatch.delenv(name, raising=False)
    arguments = ["--seeds", "3", "5", "--keep", "kept", "--json", "found.json"]
    monkeypatch.setattr(sys, "argv", ["aime_seeds", *arguments])
    aime_seeds.main()
    found = json.loads((tmp_path / "found.json").read_text())
    assert set(found) == {"3", "5"}
    assert found["3"]["elbo"]["gain"] != found["5"]["elbo"]["gain"]
    for seed in ("3", "5"):
        for phase, first in (("vrnn-trunk", 0), ("vrnn", 1), ("vrnn-single", 1)):
            report = tmp_path / f"kept/seed-{seed}/artifacts/models/{phase}/training.json"
            assert json.loads(report.read_text())["identity"]["train"]["seed"] == first + int(seed)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[-4:]] == ["seed", "seed", "mean", "lowest"]

"""The same thing started twice: one makes it, the other waits or ends in one line."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tinygraph
from tinygraph import Session

from iwm.config import resolve_profile, write_params
from iwm.files import read_json

ROOT = Path(__file__).parents[2]
SHAPE = {"width": 32, "depth": 1, "heads": 2}


def test_two_trainings_of_a_phase(tiny_shards: Path, tmp_path: Path) -> None:
    overrides = {
        "train.core.model": {
            "name": "iwm",
            "encoder": {"patch": 16, **SHAPE},
            "predictor": SHAPE,
        },
        "train.core.epochs": 2,
        "train.core.batch_size": 48,
        "train.core.device": "cpu",
    }
    profiles = ROOT / "profiles.yaml"
    values = resolve_profile("smoke", overrides=overrides, profiles=profiles, environ={})
    write_params(values, tmp_path / "params.yaml")
    shutil.copytree(tiny_shards, tmp_path / "artifacts/shards")
    environ = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW")}
    both = [
        subprocess.Popen(
            [sys.executable, "-m", "pipelines.train", "core"],
            cwd=tmp_path,
            env={**environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    said = [process.communicate() for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    first, second = sorted(out.splitlines()[-1].split(",")[0] for out, _ in said)
    assert (first, second) == ("train core: already done", "train core: done")
    (waiting,) = [line for _, err in said for line in err.splitlines() if "waiting" in line]
    assert waiting in [
        f"artifacts/models/core: waiting for process {process.pid}, which is making it"
        for process in both
    ]
    history = (tmp_path / "artifacts/models/core/history.jsonl").read_text().splitlines()
    steps = [json.loads(line)["step"] for line in history]
    assert steps == sorted(set(steps))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_runs_of_the_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    folder = tmp_path / "copy"
    tinygraph.make(folder)
    # Both begin with nothing: one records, the other waits for it.
    for arguments in (("pipelines.record",), ("dvc", "repro", "register@core")):
        both = [Session(folder, *arguments) for _ in range(2)]
        codes = [session.process.wait() for session in both]
        for session, code in zip(both, codes, strict=True):
            said = session.said()
            busy = "is busy, it is being blocked by" in said or "Unable to acquire lock" in said
            assert code == 0 or busy, said
            assert "Traceback" not in said
        assert 0 in codes
    tinygraph.run(folder, "dvc", "repro", "register@core")
    assert "up to date" in tinygraph.run(folder, "dvc", "repro", "register@core")
    assert read_json(folder / "artifacts/registry/core.json")["version"] == "1"

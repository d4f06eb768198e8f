"""The whole graph, really run in the smoke profile, and what a change re-runs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from flows import graph

ROOT = Path(__file__).parents[2]
PATH = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"


def run(*arguments: str, cwd: Path) -> str:
    """Run ``python -m ...`` in a clone; the clone's own modules come first."""
    environment = {
        **os.environ,
        "PATH": PATH,
        "PYTHONPATH": f"{cwd / 'src'}{os.pathsep}{cwd}",
        "BENTOML_HOME": str(cwd / ".bentoml"),
    }
    environment.pop("MLFLOW_TRACKING_URI", None)
    result = subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout + result.stderr


def would_run(clone: Path) -> set[str]:
    """The stages that `dvc repro` would run now."""
    lines = run("dvc", "repro", "--dry", cwd=clone).splitlines()
    return {line.split("'")[1] for line in lines if line.startswith("Running stage ")}


def made_from(stages: graph.Graph, above: str) -> set[str]:
    """Every stage that reads what a stage writes, itself or through others."""
    found: set[str] = set()
    for name, before in stages.upstream.items():
        if {above, *found}.intersection(before):
            found.add(name)
    return found


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_changed_parameter_runs_what_reads_it_and_nothing_else(tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    subprocess.run(
        [sys.executable, "-m", "pipelines.smoke", "--keep", str(clone)],
        cwd=ROOT,
        env={**os.environ, "PATH": PATH},
        check=True,
    )
    for report in (
        "validation.json",
        "metrics/action.json",
        "gates/dual.json",
        "gates/embodied-latents.json",
        "milestones.json",
        "index.html",
    ):
        assert (clone / "reports" / report).is_file()
    assert would_run(clone) == set()

    below = graph.load(clone)
    changes = (
        ("train.core.optim.lr=0.0031", "train@core"),
        ("train.action.optim.lr=0.0031", "train@action"),
        ("trajectories.particles.particles.seed=9", "trajectories@particles"),
        ("train.embodied.optim.lr=0.0031", "train@embodied"),
        ("evaluate.core.seed=9", "evaluate@core"),
        ("package.smoke_requests=5", "package"),
    )
    for change, reader in changes:
        run("pipelines.profile", "use", "smoke", "--set", change, cwd=clone)
        # A dry run cannot know what a stage will write: it may or may not list what comes after.
        assert reader in would_run(clone)
        assert would_run(clone) <= {reader} | made_from(below, reader)
        run("pipelines.profile", "use", "smoke", cwd=clone)
        assert would_run(clone) == set()
    # All phases of the image world model go on from core's encoder; none from what is beside it.
    assert {
        "train@invariant",
        "train@action",
        "trajectories@latents",
        "train@embodied-latents",
    } <= (made_from(below, "train@core"))
    assert made_from(below, "train@embodied") == {
        "evaluate@embodied",
        "gate@embodied",
        "register@embodied",
        "package",
        "report",
    }

    # Recording anew gives the bytes that data.dvc names.
    (clone / "data").rename(clone / "data-before")
    run("pipelines.record", cwd=clone)
    assert "up to date" in run("dvc", "status", "data.dvc", cwd=clone)

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

IWM = Path(sys.executable).with_name("iwm")
VERBS = sorted(entry.name for entry in entry_points(group="iwm.commands"))


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(IWM), *arguments], cwd=cwd, capture_output=True, text=True, timeout=120, check=False
    )


def test_help_lists_a_verb_for_every_stage(tmp_path: Path) -> None:
    result = run("--help", cwd=tmp_path)
    assert result.returncode == 0
    for verb in VERBS:
        assert verb in result.stdout
    stages = "record import capture ingest validate shard train evaluate gate register package"
    assert set(stages.split()) <= set(VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(verb: str, tmp_path: Path) -> None:
    result = run(verb, "--help", cwd=tmp_path)
    assert result.returncode == 0
    assert "Usage" in result.stdout


def test_help_imports_nothing_heavy(tmp_path: Path) -> None:
    # What `iwm --help` costs is what it imports; a clock would be noise.
    script = (
        "import sys\nfrom iwm.cli import build\nbuild()\n"
        "heavy = {'torch', 'timm', 'pandas', 'mlflow', 'bentoml', 'prefect', 'dvc', 'vizdoom',"
        " 'great_expectations', 'webdataset', 'matplotlib', 'scipy', 'distributed', 'av'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


def test_an_error_is_one_line_and_exit_code_1(tmp_path: Path) -> None:
    result = run("profile", "use", "cpu", cwd=tmp_path)
    assert result.returncode == 1
    assert result.stderr.startswith("error: profiles.yaml: not found")
    assert len(result.stderr.strip().splitlines()) == 1

"""Two agents in one real game tell each other their intentions through the real service."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from iwm import zoo
from pipelines._served import served

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples/two_agents.py"


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_two_agents_play_one_game(tmp_path: Path) -> None:
    environ = {"IWM_MODEL_PATH": str(zoo.path("doom-tiny")), "PYTHONPATH": str(ROOT)}
    made = tmp_path / "figures.json"
    with served("bentos.iwm:IWM", tmp_path, environ=environ, wait_s=600) as running:
        played = subprocess.run(
            [
                *(sys.executable, EXAMPLE, "--url", running.url, "--json", made),
                *("--games", "1", "--steps", "18", "--act", "3"),
            ],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
    assert played.returncode == 0, played.stderr
    found = json.loads(made.read_text())
    told, silent = found["intentions"], found["silent"]
    assert told["rounds"] == silent["rounds"] == 2 * 18 / 3
    assert told["messages"] == told["rounds"]
    # Those of the last round are not heard any more.
    assert told["read"] + told["missed"] == told["messages"] - 2
    assert told["read"] >= told["messages"] / 2
    assert told["dropped"] == 0
    assert told["bytes_max"] <= 49
    assert "messages" not in silent
    assert told["floor"]["mean"] >= 2
    assert "squares of floor" in played.stdout


def test_without_a_service_it_says_so() -> None:
    played = subprocess.run(
        [sys.executable, EXAMPLE, "--url", "http://127.0.0.1:9"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert played.returncode == 1
    assert played.stderr.startswith("error: http://127.0.0.1:9/health")
    assert len(played.stderr.splitlines()) == 1

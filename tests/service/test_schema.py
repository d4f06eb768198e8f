"""Schemathesis over the OpenAPI of a running service."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from iwm.serving.runtime import CALLS
from pipelines._served import Served, served

ROOT = Path(__file__).resolve().parents[2]
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
)


def schemathesis(service: Served, folder: Path, *options: str) -> int:
    """Run it; returns how many cases passed, which must be all of them."""
    done = subprocess.run(
        [
            Path(sys.executable).with_name("schemathesis"),
            "run",
            f"{service.url}/openapi.json",
            "--checks",
            ",".join(CHECKS),
            "--request-timeout=60",
            "--generation-database=none",
            "--no-color",
            *options,
        ],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    count = re.search(r"(\d+) generated, (\d+) passed", said)
    assert count, said
    assert count[1] == count[2], said
    print(f"schemathesis: {count[0]}")
    return int(count[2])


def test_examples_and_some_cases(whole: Served, tmp_path: Path) -> None:
    options = "--phases=examples,fuzzing", "--max-examples=10", "--seed=1"
    assert schemathesis(whole, tmp_path, *options) > 50
    answered = httpx.get(f"{whole.url}/metrics").text
    for call in CALLS:
        (count,) = re.findall(rf'iwm_served_total{{call="{call}"}} (\d+)', answered)
        assert int(count), f"no example of /{call} was answered 200"


@pytest.mark.slow
def test_a_service_without_streams_and_dreams(models: Path, tmp_path: Path) -> None:
    """What it cannot answer is a 404 that its document allows."""
    environ = {"IWM_MODEL_PATH": str(models / "action"), "PYTHONPATH": str(ROOT)}
    with served("bentos.iwm:IWM", tmp_path, environ=environ) as service:
        options = "--phases=examples,fuzzing", "--max-examples=10", "--seed=1"
        assert schemathesis(service, tmp_path, *options) > 30
        answered = httpx.get(f"{service.url}/metrics").text
    assert 'iwm_served_total{call="dream"} 0' in answered
    assert 'iwm_answers_total{call="dream",status="404"}' in answered


@pytest.mark.slow
def test_two_thousand_cases(whole: Served, tmp_path: Path) -> None:
    assert schemathesis(whole, tmp_path, "--max-examples=300") >= 2000
    assert httpx.get(f"{whole.url}/health", timeout=10).json()["status"] == "ok"

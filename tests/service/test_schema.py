"""Schemathesis over the OpenAPI of a running service."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from pipelines._served import Served

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
    for call in ("encode", "predict", "rollout", "encode_dual", "plan", "surprise"):
        (count,) = re.findall(rf'iwm_served_total{{call="{call}"}} (\d+)', answered)
        assert int(count), f"no example of /{call} was answered 200"


@pytest.mark.slow
def test_two_thousand_cases(whole: Served, tmp_path: Path) -> None:
    assert schemathesis(whole, tmp_path, "--max-examples=300") >= 2000
    assert httpx.get(f"{whole.url}/health", timeout=10).json()["status"] == "ok"

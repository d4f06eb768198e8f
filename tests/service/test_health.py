"""`iwm health`, asked of a running service and of none."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from pipelines._served import Served, free_port


def health(url: str) -> tuple[int, dict[str, object]]:
    done = subprocess.run(
        [Path(sys.executable).with_name("iwm"), "health", "--url", url],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, dict(json.loads(done.stdout))


def test_it_is_well(whole: Served) -> None:
    code, answer = health(whole.url)
    assert code == 0
    assert answer["status"] == "ok"
    assert answer["model_variant"] == "action"


def test_nobody_is_there() -> None:
    code, answer = health(f"http://127.0.0.1:{free_port()}")
    assert code == 1
    assert answer["status"] == "error"
    assert answer["error"]

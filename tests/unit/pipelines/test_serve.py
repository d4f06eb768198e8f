"""What `iwm serve` starts: BentoML in its own place, told by variables what to serve."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from iwm.errors import ModelError, ServiceError


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The arguments of the program that took over."""
    arguments: list[str] = []
    for name in [name for name in os.environ if name.startswith("IWM_")]:
        monkeypatch.delenv(name)
    # What the command sets is undone with the test.
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setattr(os, "execv", lambda _, found: arguments.extend(found))
    return arguments


def serve(*arguments: str) -> Any:
    import typer

    from pipelines.serve import serve as command

    app = typer.Typer()
    app.command()(command)
    return CliRunner().invoke(app, arguments)


def test_the_packaged_champions_by_default(started: list[str]) -> None:
    assert serve("--port", "9001").exit_code == 0
    assert started[3:] == ["serve", "iwm:latest", "--host", "127.0.0.1", "--port", "9001"]
    assert "IWM_MODEL_PATH" not in os.environ
    assert (os.environ["IWM_REGISTRY_POLL_S"], os.environ["IWM_PRECISION"]) == ("0.0", "float32")


def test_untrained_models_by_name(started: list[str]) -> None:
    assert serve("--model", "random", "--variant", "core", "--poll", "5").exit_code == 0
    assert started[4] == "bentos.iwm:IWM"
    assert (os.environ["IWM_MODEL_PATH"], os.environ["IWM_MODEL_VARIANT"]) == ("random", "core")
    assert os.environ["IWM_REGISTRY_POLL_S"] == "5.0"


def test_a_folder_must_be_there(started: list[str], tmp_path: Path) -> None:
    assert serve("--model-path", str(tmp_path)).exit_code == 0
    assert os.environ["IWM_MODEL_PATH"] == str(tmp_path)
    assert isinstance(serve("--model-path", str(tmp_path / "none")).exception, ServiceError)
    assert isinstance(serve("--model", "nothing-like-it").exception, ModelError)
    assert started.count("serve") == 1

"""The example's loop in the real game, against a service that knows nothing of it."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from fakeservice import FakeService
from typer.testing import CliRunner

FILE = Path(__file__).parents[3] / "examples/doom_agent.py"
MOVES = {
    "noop": (0, 0),
    "move_forward": (0, 1),
    "move_backward": (0, -1),
    "turn_left": (-1, 0),
    "turn_right": (1, 0),
}


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Any:
    found = importlib.util.spec_from_file_location("doom_agent", FILE)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    monkeypatch.setitem(sys.modules, "doom_agent", module)  # dataclasses look their module up
    found.loader.exec_module(module)
    return module


def run(example: Any, *arguments: str) -> Any:
    import typer

    app = typer.Typer(add_completion=False)
    app.command()(example.main)
    return CliRunner().invoke(app, arguments)


def serve(monkeypatch: pytest.MonkeyPatch, service: FakeService) -> None:
    real = httpx.AsyncClient

    def faked(**settings: Any) -> httpx.AsyncClient:
        return real(**{**settings, "transport": httpx.MockTransport(service)})

    monkeypatch.setattr(httpx, "AsyncClient", faked)


def test_it_plays_and_reports(
    example: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    service = FakeService(MOVES)
    serve(monkeypatch, service)
    made = tmp_path / "figures.json"
    result = run(example, "--episodes", "2", "--act", "4", "--json", str(made))
    assert result.exit_code == 0, result.output
    figures = json.loads(made.read_text())
    frames = figures["perception"]["frames_processed"]
    assert figures["agent"]["success"]["n"] == figures["random"]["success"]["n"] == 2
    assert service.count("/encode") == frames + 2  # and the two goals
    assert service.count("/surprise") == service.count("/predict") == frames - 2
    assert frames / 4 <= service.count("/plan") <= frames
    assert "agent - random:" in result.output
    for part in ("see", "decide", "step"):
        assert {"p50", "p95", "p99"} == set(figures["latency_ms"][part])


def test_the_same_seed_plays_the_same_tasks(example: Any) -> None:
    one, other = (run(example, "--random", "--episodes", "3", "--seed", "4") for _ in range(2))
    assert one.output == other.output
    assert "random  reached" in one.output
    assert "agent" not in one.output


@pytest.mark.parametrize("wrong", ["away", "another game"])
def test_what_is_wrong_is_said_in_one_line(
    example: Any, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    service = FakeService()
    service.away = wrong == "away"
    serve(monkeypatch, service)
    result = run(example, "--episodes", "1")
    assert result.exit_code == 1
    (line,) = result.output.splitlines()
    assert line.startswith("error: ")
    assert ("refused" if service.away else "iwm serve --model doom-tiny") in line

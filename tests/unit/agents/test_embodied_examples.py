"""The examples of embodied agents, run as they stand on small models; the benchmark's rows."""

from __future__ import annotations

import importlib.util
import time
from pathlib import Path
from typing import Any

import pytest
import typer
from fakechat import KEY, chat_server
from tinyembodied import write_embodied
from typer.testing import CliRunner

from benchmarks.coordination import measure

EXAMPLES = Path(__file__).parents[3] / "examples"


def run(name: str, *arguments: str) -> str:
    found = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert found is not None
    assert found.loader is not None
    module: Any = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    app = typer.Typer(add_completion=False)
    app.command()(module.main)
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(autouse=True)
def _no_reasoner(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("URL", "MODEL", "KEY"):
        monkeypatch.delenv(f"IWM_REASONER_{name}", raising=False)


def test_basic_usage(tmp_path: Path) -> None:
    said = run("basic_usage", "--steps", "3")
    assert said.count('"g":"north"') == 3
    assert "(heuristic, confidence" in said
    trained = run("basic_usage", "--model", str(write_embodied(tmp_path)), "--steps", "2")
    assert trained.count("sends {") == 2


def test_basic_usage_with_a_language_model(monkeypatch: pytest.MonkeyPatch) -> None:
    with chat_server() as server:
        monkeypatch.setenv("IWM_REASONER_URL", server.url)
        monkeypatch.setenv("IWM_REASONER_MODEL", "fake")
        monkeypatch.setenv("IWM_REASONER_KEY", KEY)
        assert '"g":"north"' in run("basic_usage", "--steps", "2")
        deadline = time.monotonic() + 60  # it is asked aside, and the loop has ended
        while not server.asked:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_multi_agent_coordination(tmp_path: Path) -> None:
    folder = str(write_embodied(tmp_path))
    for arguments in ((), ("--model", folder)):
        said = run("multi_agent_coordination", *arguments)
        assert said.count("round ") == 6
        assert "silent: nobody" in said.splitlines()[0]
        assert "'stale_round': 3" in said
        assert "'not_json': 3" in said
        assert "silent rounds: {'stranger': 5}" in said


def test_latency_benchmark() -> None:
    said = run(
        "latency_benchmark", *("--agents", "3", "--rounds", "3", "--warmup", "1"),
        *("--state", "8", "--horizon", "6"),
    )  # fmt: skip
    for phase in ("encode", "imagine", "select", "compress", "broadcast", "parse", "act", "total"):
        assert phase in said
    assert "3 agents, p95 under 100 ms: " in said


def test_the_benchmark_measures_both_ways() -> None:
    sizes = {"state_dim": 8, "latent_dim": 8, "hidden_dim": 16, "horizon": 6}
    rows = measure(None, [2, 3], 2, 1, sizes)
    assert [(row.what, row.agents) for row in rows] == [
        (what, count) for count in (2, 3) for what in ("intentions", "whole trajectories")
    ]
    for row in rows:
        assert row.messages == row.agents * (row.agents - 1)
        assert row.p50 > 0
        assert row.dropped == 0
        if row.what == "intentions":
            assert row.bytes <= 49 * row.agents
            for tokens in row.tokens.values():
                assert tokens < 50 * row.agents
    for few, whole in zip(rows[::2], rows[1::2], strict=True):
        assert few.bytes < whole.bytes
        assert set(few.tokens) == {"DeepSeek", "Tekken"}

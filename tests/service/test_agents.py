"""The example agent and the pages' snippets against the service as it is really run."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from iwm import zoo
from iwm.agents import ActionArbiter, ArbiterConfig, BeingState, IWMPerceptionModule
from pipelines._served import Served, served

ROOT = Path(__file__).resolve().parents[2]
EPISODES = 20

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    environ = {"IWM_MODEL_PATH": str(zoo.path("doom-tiny")), "PYTHONPATH": str(ROOT)}
    with served("bentos.iwm:IWM", folder, environ=environ, wait_s=600) as running:
        yield running


def test_the_example_does_no_worse_than_random(service: Served, tmp_path: Path) -> None:
    made = tmp_path / "figures.json"
    played = subprocess.run(
        [
            sys.executable,
            ROOT / "examples/doom_agent.py",
            *("--episodes", str(EPISODES), "--url", service.url, "--json", made),
        ],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert played.returncode == 0, played.stderr
    figures = json.loads(made.read_text())
    agent, chance = figures["agent"]["success"], figures["random"]["success"]
    assert agent["n"] == chance["n"] == EPISODES
    assert agent["mean"] >= chance["mean"], played.stdout
    decisions = figures["reasons"]
    assert decisions["plan"] > 0.9 * sum(decisions.values())
    seen = figures["perception"]
    assert seen["frames_processed"] > 0.9 * sum(decisions.values())
    assert seen["surprises_measured"] > 0.9 * (seen["frames_processed"] - EPISODES)
    assert set(figures["latency_ms"]) == {"see", "decide", "step"}
    assert f"of {EPISODES} goals" in played.stdout


def test_the_snippets_of_the_page(service: Served, tmp_path: Path) -> None:
    page = (ROOT / "docs/agents.md").read_text()
    for number, snippet in enumerate(re.findall(r"```python\n(.*?)```", page, re.S)):
        file = tmp_path / f"snippet{number}.py"
        file.write_text(snippet.replace("http://localhost:8001", service.url))
        run = subprocess.run([sys.executable, file], capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        assert run.stdout


def test_what_cannot_be_is_surprising_and_the_agent_slows_down(service: Served) -> None:
    from iwm.gameplay.config import RecordPlan
    from iwm.gameplay.sources import open_source

    plan = RecordPlan(name="home", source="vizdoom", game="my_way_home", frames=2)
    source = open_source(plan)

    async def scenario() -> None:
        ordinary, torn = [], []
        async with IWMPerceptionModule(service.url, enable_rollouts=True) as eyes:
            arbiter = ActionArbiter(eyes.client, ArbiterConfig(wait_action="noop", horizon=4))
            for seed in range(8):
                state = BeingState()
                frame = source.reset(seed)
                await eyes.process_frame(frame, state)
                for _ in range(3):
                    shown = source.step(source.actions.index("turn_left")).frame
                    assert shown is not None
                    await eyes.process_frame(shown, state, "turn_left")
                    ordinary.append(state.vision_prediction_surprise)
                assert 0.0 < state.vision_mrr <= 1.0
                future = await eyes.imagine_future(state, ["turn_left", "move_forward"])
                assert future is not None
                assert np.isfinite(future.z_cls_seq).all()
                # Suddenly elsewhere: another episode's first frame.
                await eyes.process_frame(source.reset(1000 + seed), state, "turn_left")
                torn.append(state.vision_prediction_surprise)
                decision = await arbiter.request_action(state, scoring="certainty")
                assert decision.reason == "plan"
                assert decision.slow_down == (torn[-1] > 2.0)
        assert np.median(torn) > 2.0 > np.median(ordinary)

    try:
        asyncio.run(scenario())
    finally:
        source.close()

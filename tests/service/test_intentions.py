"""/imagine and /intention of a real service: futures, rooms, bounds, refusals."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from tinyembodied import ACTION, HORIZON, STATE, starts, tiny_compressor, tiny_world_model
from tinymodel import write_action_model

from iwm.agents.intention import IntentionCompressor
from iwm.client import IWMClient, Refused, SyncIWMClient
from iwm.errors import ModelError
from iwm.serving.config import ServiceConfig
from iwm.serving.models import load_models
from pipelines._served import Served, served

ROOT = Path(__file__).resolve().parents[2]
HERE = starts(1)[0]


def test_futures_of_a_state(whole: Served) -> None:
    with SyncIWMClient(whole.url) as client:
        known = client.model().card["embodied"]
        assert (known["state_dim"], known["action_dim"]) == (STATE, ACTION)
        found = client.imagine(HERE, rollouts=7, seed=3, every=True)
        assert found.states.shape == (HORIZON, STATE)
        assert found.actions.shape == (HORIZON, ACTION)
        assert found.returns.shape == (7,)
        assert found.best == found.returns.argmax()
        assert found.all_states is not None
        assert (found.all_states[found.best] == found.states).all()
        assert 0 <= found.confidence <= 1
        again = client.imagine(HERE, rollouts=7, seed=3)
        assert (again.states == found.states).all()
        assert again.all_states is None
        target = np.full(STATE, np.nan)
        target[1] = 3.0
        towards = client.imagine(HERE, target, rollouts=7, seed=3)
        assert abs(towards.states[-1, 1] - 3) <= abs(found.all_states[..., -1, 1] - 3).max()


def test_a_plan_is_what_the_model_imagines(whole: Served) -> None:
    plan = np.random.default_rng(0).uniform(-1, 1, (5, ACTION)).astype(np.float32)
    import torch

    model = tiny_world_model()
    with SyncIWMClient(whole.url) as client:
        found = client.imagine(HERE, action_seq=plan, rollouts=3, seed=5, every=True)
    expected = model.imagine(torch.tensor(HERE)[None], torch.tensor(plan), 3, 5, seed=5)
    assert found.all_states == pytest.approx(expected.states[0].numpy(), abs=1e-4)
    assert (found.actions == plan).all()


def test_two_agents_hear_each_other_in_a_room(whole: Served) -> None:
    compressor = tiny_compressor()
    with SyncIWMClient(whole.url) as client:
        red = client.imagine(HERE, seed=1)
        said = client.intention("red", 1, room="duel", trajectory=red.states, goal="flag",
                                confidence=0.8)  # fmt: skip
        assert said.size == len(said.intention.encode()) <= 49
        assert said.others == ()
        heard = client.intention("blue", 1, room="duel", text='{"g":[1,2],"c":70}')
        (other,) = heard.others
        assert (other.agent, other.goal, other.confidence) == ("red", "flag", 0.8)
        assert other.plan is not None
        expected = compressor.decompress(said.intention).trajectory
        assert other.plan == pytest.approx(expected, abs=1e-4)
        scale = compressor.codec.scale
        assert np.sqrt(np.square((other.plan - red.states) / scale).mean()) < 0.5
        back = client.intention("red", 1, room="duel", text='{"g":1}')
        assert back.others[0].goal == (1, 2)
        assert back.others[0].plan is None  # not compressed here
        # A round later what blue said is stale, and blue is missing.
        later = client.intention("red", 2, room="duel", text='{"g":1}', agents=["blue", "red"])
        assert (later.others, later.stale, later.missing) == ((), ("blue",), ("blue",))
        elsewhere = client.intention("red", 2, room="other", text='{"g":1}')
        assert elsewhere.others == elsewhere.stale == ()


def test_a_silent_agent_is_not_waited_for_beyond_the_time(whole: Served) -> None:
    with SyncIWMClient(whole.url) as client:
        begun = time.monotonic()
        said = client.intention("red", 0, room="w", text='{"g":1}', agents=["blue"], wait_ms=200)
        assert time.monotonic() - begun >= 0.2
        assert said.missing == ("blue",)


def test_who_comes_within_the_time_is_heard(whole: Served) -> None:
    async def both() -> None:
        async with IWMClient(whole.url) as client:
            red, blue = await asyncio.gather(
                client.intention("red", 0, room="x", text='{"g":1}', agents=["blue"], wait_ms=1000),
                client.intention("blue", 0, room="x", text='{"g":2}', agents=["red"], wait_ms=1000),
            )
            assert red.others[0].goal == 2
            assert blue.others[0].goal == 1
            found = await client.imagine(HERE, rollouts=2)
            assert found.states.shape == (HORIZON, STATE)

    asyncio.run(both())


@pytest.mark.parametrize(
    ("path", "change", "line"),
    [
        ("/imagine", {"state": [1.0]}, "state: expected 6 numbers, given 1"),
        ("/imagine", {"state": [1e30] * 6}, "no finite numbers"),
        ("/imagine", {"state": None}, "state: expected a list of numbers"),
        ("/imagine", {"target": [1.0]}, "target: expected 6 numbers, given 1"),
        ("/imagine", {"actions": ["fly"]}, "actions: this model knows none by name"),
        ("/imagine", {"actions": ["a"], "action_seq": [[0, 0]]}, "expected one of the two"),
        ("/imagine", {"action_seq": [[0.0]]}, "action_seq: expected 2 numbers a step"),
        ("/imagine", {"action_seq": [[0, 0]], "horizon": 3}, "horizon: expected 1"),
        ("/imagine", {"rollouts": 257}, "rollouts: expected at most 256"),
        ("/imagine", {"horizon": 257}, "horizon: expected at most 256"),
        ("/intention", {"text": "x"}, "expected exactly one of the two"),
        ("/intention", {"trajectory": None}, "expected exactly one of the two"),
        ("/intention", {"trajectory": None, "text": "hello"}, "intention: expected JSON"),
        ("/intention", {"trajectory": None, "text": '{"x":1}'}, "intention: expected an object"),
        ("/intention", {"trajectory": None, "text": "é" * 30}, "at most 49 bytes"),
        ("/intention", {"trajectory": None, "text": "e" * 50}, "at most 49 characters"),
        ("/intention", {"trajectory": [[1.0]]}, "trajectory: expected finite"),
        ("/intention", {"trajectory": [[1.0] * 6] * 13}, "trajectory: expected finite"),
        ("/intention", {"goal": "x" * 42}, "goal: expected at most 41 bytes"),
        ("/intention", {"goal": True}, "goal"),
        ("/intention", {"confidence": 2}, "confidence"),
        ("/intention", {"agent": ""}, "agent"),
        ("/intention", {"round": -1}, "round"),
        ("/intention", {"wait_ms": 1001}, "wait_ms"),
    ],
)
def test_what_is_refused(whole: Served, path: str, change: dict[str, Any], line: str) -> None:
    right: dict[str, Any] = {"state": HERE.tolist()}
    if path == "/intention":
        right = {"agent": "a", "round": 0, "trajectory": [HERE.tolist()] * 3, "goal": 1}
    assert httpx.post(whole.url + path, json=right).status_code == 200
    answer = httpx.post(whole.url + path, json={**right, **change})
    assert answer.status_code == 422, answer.text
    assert line in answer.json()["detail"]


def test_a_room_is_bounded(whole: Served) -> None:
    with SyncIWMClient(whole.url) as client:
        for number in range(64):
            client.intention(f"agent{number}", 0, room="full", text='{"g":1}')
        with pytest.raises(Refused, match="room: expected at most 64 agents"):
            client.intention("one more", 0, room="full", text='{"g":1}')


def test_calls_are_counted(whole: Served) -> None:
    httpx.post(f"{whole.url}/imagine", json={"state": HERE.tolist()})
    text = httpx.get(f"{whole.url}/metrics").text
    assert 'iwm_latency_seconds_count{call="imagine"}' in text
    assert 'iwm_served_total{call="intention"}' in text


def test_a_service_without_a_world_model_of_states(tmp_path: Path) -> None:
    """It says so; intentions that come compressed still find their room."""
    write_action_model(tmp_path / "model")
    environ = {
        "IWM_MODEL_PATH": str(tmp_path / "model"),
        "IWM_DEVICE": "cpu",
        "PYTHONPATH": str(ROOT),
    }
    with (
        served("bentos.iwm:IWM", tmp_path, environ=environ, wait_s=300) as running,
        SyncIWMClient(running.url) as client,
    ):
        assert client.model().card["embodied"] is None
        with pytest.raises(Refused, match=r"404: imagine: .*\(embodied\); it holds action"):
            client.imagine(HERE)
        with pytest.raises(Refused, match=r"404: intention: trajectory: .*\(embodied\)"):
            client.intention("red", 0, trajectory=starts(3))
        client.intention("red", 0, room="r", text='{"g":1,"p":"!!!!!!!!!!!!!!!!!!"}')
        heard = client.intention("blue", 0, room="r", text='{"g":2}')
        assert heard.others[0].plan is None


def test_a_model_of_states_does_not_answer_alone(models: Path) -> None:
    with pytest.raises(ModelError, match="put it into a folder embodied/"):
        load_models(ServiceConfig(model_path=models / "embodied", device="cpu"))


def test_a_codec_of_another_model_is_refused(models: Path, tmp_path: Path) -> None:
    import shutil

    from iwm.agents.codec import TrajectoryCodec
    from iwm.serving.embodied import load_imaginer

    shutil.copytree(models / "embodied", tmp_path / "embodied")
    IntentionCompressor(TrajectoryCodec.cosine(4, [0], [1])).codec.save(tmp_path / "embodied")
    with pytest.raises(ModelError, match="states of 1 numbers, its model of 6"):
        load_imaginer(tmp_path / "embodied", "cpu")
    with pytest.raises(ModelError, match="no such model folder"):
        load_imaginer(tmp_path / "nowhere", "cpu")

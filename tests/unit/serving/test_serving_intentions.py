"""``/imagine`` and ``/intention``, over HTTP inside this process: futures, rooms, refusals."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import httpx
import numpy as np
import pytest
import torch
from tinyembodied import (
    ACTION,
    HORIZON,
    STATE,
    starts,
    tiny_compressor,
    tiny_world_model,
    write_embodied,
)

from iwm.agents.codec import TrajectoryCodec
from iwm.client import IWMClient, Refused
from iwm.errors import ModelError
from iwm.serving.app import Runtime, create_app
from iwm.serving.config import ServiceConfig
from iwm.serving.embodied import MAX_AGENTS, MAX_ROOMS, Board, Posted, load_imaginer
from iwm.serving.engine import Engine
from iwm.serving.models import load_models

HERE = starts(1)[0]
T = TypeVar("T")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_embodied(tmp_path_factory.mktemp("embodied") / "embodied")


@pytest.fixture(scope="module")
def runtime(engine: Engine, folder: Path) -> Runtime:
    return Runtime(ServiceConfig(), engine, imaginer=load_imaginer(folder, "cpu"))


def ask(runtime: Runtime, scenario: Callable[[IWMClient], Coroutine[Any, Any, T]]) -> T:
    """What a client of the application gets."""

    async def within() -> T:
        transport = httpx.ASGITransport(create_app(runtime.config, runtime))
        async with IWMClient("http://test", transport=transport) as client:
            return await scenario(client)

    return asyncio.run(within())


def post(runtime: Runtime, path: str, body: Any) -> httpx.Response:
    return ask(runtime, lambda client: client._http.post(path, json=body))


def test_futures_of_a_state(runtime: Runtime) -> None:
    async def scenario(client: IWMClient) -> None:
        known = (await client.model()).card["embodied"]
        assert (known["state_dim"], known["action_dim"]) == (STATE, ACTION)
        found = await client.imagine(HERE, rollouts=7, seed=3, every=True)
        assert found.states.shape == (HORIZON, STATE)
        assert found.actions.shape == (HORIZON, ACTION)
        assert found.returns.shape == (7,)
        assert found.best == found.returns.argmax()
        assert found.all_states is not None
        assert (found.all_states[found.best] == found.states).all()
        assert 0 <= found.confidence <= 1
        again = await client.imagine(HERE, rollouts=7, seed=3)
        assert (again.states == found.states).all()
        assert again.all_states is None
        target = np.full(STATE, np.nan)
        target[1] = 3.0
        towards = await client.imagine(HERE, target, rollouts=7, seed=3)
        assert (towards.returns < 0).all()

    ask(runtime, scenario)


def test_a_plan_is_what_the_model_imagines(runtime: Runtime) -> None:
    plan = np.random.default_rng(0).uniform(-1, 1, (5, ACTION)).astype(np.float32)
    found = ask(
        runtime,
        lambda client: client.imagine(HERE, action_seq=plan, rollouts=3, seed=5, every=True),
    )
    expected = tiny_world_model().imagine(
        torch.tensor(HERE)[None], torch.tensor(plan), 3, 5, seed=5
    )
    assert found.all_states == pytest.approx(expected.states[0].numpy(), abs=1e-4)
    assert found.actions == pytest.approx(plan)


def test_two_agents_hear_each_other_in_a_room(runtime: Runtime) -> None:
    compressor = tiny_compressor()

    async def scenario(client: IWMClient) -> None:
        red = await client.imagine(HERE, seed=1)
        said = await client.intention(
            "red", 1, room="duel", trajectory=red.states, goal="flag", confidence=0.8
        )
        assert said.size == len(said.intention.encode()) <= 49
        assert said.others == ()
        heard = await client.intention("blue", 1, room="duel", text='{"g":[1,2],"c":70}')
        (other,) = heard.others
        assert (other.agent, other.goal, other.confidence) == ("red", "flag", 0.8)
        assert other.plan is not None
        expected = compressor.decompress(said.intention).trajectory
        assert other.plan == pytest.approx(expected, abs=1e-4)
        off = np.sqrt(np.square((other.plan - red.states) / compressor.codec.scale).mean())
        assert off < 0.5
        back = await client.intention("red", 1, room="duel", text='{"g":1}')
        assert back.others[0].goal == (1, 2)
        assert back.others[0].plan is None  # not compressed here
        # A round later what blue said is stale, and blue is missing.
        later = await client.intention(
            "red", 2, room="duel", text='{"g":1}', agents=["blue", "red"]
        )
        assert (later.others, later.stale, later.missing) == ((), ("blue",), ("blue",))
        elsewhere = await client.intention("red", 2, room="other", text='{"g":1}')
        assert elsewhere.others == elsewhere.stale == ()

    ask(runtime, scenario)


def test_a_silent_agent_is_not_waited_for_beyond_the_time(runtime: Runtime) -> None:
    begun = time.monotonic()
    said = ask(
        runtime,
        lambda client: client.intention(
            "red", 0, room="w", text='{"g":1}', agents=["blue"], wait_ms=200
        ),
    )
    assert time.monotonic() - begun >= 0.2
    assert said.missing == ("blue",)


def test_who_comes_within_the_time_is_heard(runtime: Runtime) -> None:
    async def scenario(client: IWMClient) -> None:
        red, blue = await asyncio.gather(
            client.intention("red", 0, room="x", text='{"g":1}', agents=["blue"], wait_ms=1000),
            client.intention("blue", 0, room="x", text='{"g":2}', agents=["red"], wait_ms=1000),
        )
        assert red.others[0].goal == 2
        assert blue.others[0].goal == 1

    ask(runtime, scenario)


@pytest.mark.parametrize(
    ("path", "change", "line"),
    [
        ("/imagine", {"state": [1.0]}, "state: expected 6 numbers, given 1"),
        ("/imagine", {"target": [1e30] * 6}, "no finite numbers"),
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
def test_what_is_refused(runtime: Runtime, path: str, change: dict[str, Any], line: str) -> None:
    right: dict[str, Any] = {"state": HERE.tolist()}
    if path == "/intention":
        right = {"agent": "a", "round": 0, "trajectory": [HERE.tolist()] * 3, "goal": 1}
    assert post(runtime, path, right).status_code == 200
    answer = post(runtime, path, {**right, **change})
    assert answer.status_code == 422, answer.text
    assert line in answer.json()["detail"]


def test_rooms_are_bounded(runtime: Runtime) -> None:
    async def scenario() -> None:
        board = Board()
        for number in range(MAX_AGENTS):
            board.post("full", f"agent{number}", Posted(0, "{}", False))
        board.post("full", "agent0", Posted(1, "{}", False))  # who is in it may go on
        with pytest.raises(Exception, match="at most 64 agents"):
            board.post("full", "one more", Posted(0, "{}", False))
        for number in range(MAX_ROOMS + 50):
            board.post(f"room{number}", "a", Posted(0, "{}", False))
        assert len(board) <= MAX_ROOMS + 1
        assert await board.others("full", "b", 0, [], 0) == {}  # forgotten

    asyncio.run(scenario())


def test_calls_are_counted(runtime: Runtime) -> None:
    post(runtime, "/imagine", {"state": HERE.tolist()})
    text = ask(runtime, lambda client: client._http.get("/metrics")).text
    assert 'iwm_latency_seconds_count{call="imagine"}' in text
    assert 'iwm_served_total{call="intention"}' in text


def test_a_service_without_a_world_model_of_states(engine: Engine) -> None:
    """It says so; intentions that come compressed still find their room."""
    bare = Runtime(ServiceConfig(), engine)

    async def scenario(client: IWMClient) -> None:
        assert (await client.model()).card["embodied"] is None
        with pytest.raises(Refused, match=r"404: imagine: .*\(embodied\); it holds core"):
            await client.imagine(HERE)
        with pytest.raises(Refused, match=r"404: intention: trajectory: .*\(embodied\)"):
            await client.intention("red", 0, trajectory=starts(3))
        text = '{"g":1,"p":"!!!!!!!!!!!!!!!!!!"}'
        await client.intention("red", 0, room="r", text=text)
        heard = await client.intention("blue", 0, room="r", text='{"g":2}')
        assert heard.others[0].text == text
        assert heard.others[0].plan is None

    ask(bare, scenario)


def test_the_document_has_the_models_own_sizes(runtime: Runtime) -> None:
    document = create_app(runtime.config, runtime).openapi()
    imagine = document["components"]["schemas"]["ImagineRequest"]["properties"]
    assert (imagine["state"]["minItems"], imagine["state"]["maxItems"]) == (STATE, STATE)
    assert imagine["rollouts"]["maximum"] == runtime.config.limits.max_imagined
    examples = document["paths"]["/imagine"]["post"]["requestBody"]["content"]
    for one in examples["application/json"]["examples"].values():
        assert post(runtime, "/imagine", one["value"]).status_code == 200
    examples = document["paths"]["/intention"]["post"]["requestBody"]["content"]
    for one in examples["application/json"]["examples"].values():
        assert post(runtime, "/intention", one["value"]).status_code == 200


def test_a_model_of_states_does_not_answer_alone(folder: Path) -> None:
    with pytest.raises(ModelError, match="put it into a folder embodied/"):
        load_models(ServiceConfig(model_path=folder, device="cpu"))


def test_a_codec_of_another_model_is_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "embodied")
    TrajectoryCodec.cosine(4, [0], [1]).save(tmp_path / "embodied")
    with pytest.raises(ModelError, match="states of 1 numbers, its model of 6"):
        load_imaginer(tmp_path / "embodied", "cpu")
    with pytest.raises(ModelError, match="no such model folder"):
        load_imaginer(tmp_path / "nowhere", "cpu")

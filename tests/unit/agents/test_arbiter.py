from __future__ import annotations

import asyncio
import math
from typing import Any

import httpx
import numpy as np
import pytest
from fakeservice import MOVES, FakeService, picture
from hypothesis import given
from hypothesis import strategies as st

from iwm.agents import ActionArbiter, ArbiterConfig, BeingState, Decision, VisionState
from iwm.client import IWMClient
from iwm.errors import ConfigError

GOAL = np.array([8.0, 3.0], np.float32)


def arbiter(service: FakeService, reasoner: Any = None, **settings: Any) -> ActionArbiter:
    client = IWMClient("http://test", retries=0, transport=httpx.MockTransport(service))
    config = ArbiterConfig(**{"wait_action": "noop", **settings})
    return ActionArbiter(client, config, reasoner)


def seeing(x: float = 5, y: float = 5, **fields: Any) -> BeingState:
    place = np.array([x, y], np.float32)
    values = {"vision_mrr": 0.9, "vision_core_latent_prev": place, **fields}
    return BeingState(vision_core_latent=place, **values)


def ask(chooser: ActionArbiter, state: VisionState, *args: Any, **wanted: Any) -> Decision:
    return asyncio.run(chooser.request_action(state, *args, **wanted))


def test_it_walks_to_the_goal() -> None:
    service = FakeService()
    chooser, place = arbiter(service, actions=tuple(MOVES)), np.array([5.0, 5.0])
    for _ in range(5):
        decision = ask(chooser, seeing(*place), GOAL)
        assert decision.reason == "plan"
        place += MOVES[decision.action]
    np.testing.assert_array_equal(place, GOAL)
    assert service.count("/plan") == 5
    body = service.asked[0][1]
    assert (body["horizon"], body["candidates"], body["actions"]) == (8, 300, list(MOVES))


def test_a_goal_may_be_a_picture_or_a_scoring() -> None:
    assert ask(arbiter(FakeService()), seeing(), picture(5, 9)).action == "up"
    service = FakeService()
    assert ask(arbiter(service), seeing(), scoring="far").action == "right"
    assert service.asked[0][1]["scoring"] == "far"


def test_a_plan_is_acted_on_until_the_world_surprises() -> None:
    service = FakeService()
    chooser = arbiter(service, act=4)
    for asked in (1, 1, 1, 1, 2, 2):
        decision = ask(chooser, seeing(), GOAL)
        assert (service.count("/plan"), decision.slow_down) == (asked, False)
    decision = ask(chooser, seeing(vision_prediction_surprise=2.5), GOAL)
    assert decision.slow_down
    assert service.count("/plan") == 3
    ask(chooser, seeing(), GOAL)
    assert service.count("/plan") == 4  # slowed down: one action of that plan
    ask(chooser, seeing(), GOAL + 1)
    assert service.count("/plan") == 5  # another goal


def test_it_waits_but_not_for_ever() -> None:
    chooser = arbiter(FakeService(), on_surprise="wait", max_waits=3)
    startled = seeing(vision_prediction_surprise=5.0)
    reasons = [ask(chooser, startled, GOAL).reason for _ in range(5)]
    assert reasons == ["surprise"] * 3 + ["plan"] * 2
    assert ask(chooser, seeing(), GOAL).reason == "plan"
    assert ask(chooser, startled, GOAL).reason == "surprise"


def test_low_confidence_asks_the_reasoner() -> None:
    asked: list[VisionState] = []

    async def reasoner(state: VisionState) -> str | None:
        asked.append(state)
        return "down" if len(asked) == 1 else None

    chooser = arbiter(FakeService(), reasoner)
    unsure = seeing(vision_mrr=0.4)
    decision = ask(chooser, unsure, GOAL)
    assert (decision.action, decision.reason) == ("down", "reasoner")
    assert math.isnan(decision.score)
    assert ask(chooser, unsure, GOAL).reason == "plan"  # it had no opinion
    assert ask(chooser, seeing(vision_mrr=0.5), GOAL).reason == "plan"
    first = seeing(vision_mrr=0.0, vision_core_latent_prev=None)
    assert ask(chooser, first, GOAL).reason == "plan"  # nothing was predicted yet
    assert len(asked) == 2


def test_a_reasoner_that_fails_or_sleeps_stops_nothing() -> None:
    async def broken(state: VisionState) -> str | None:
        raise RuntimeError("no model")

    async def asleep(state: VisionState) -> str | None:
        await asyncio.sleep(60)
        return "down"

    for reasoner in (broken, asleep):
        chooser = arbiter(FakeService(), reasoner, reasoner_timeout_s=0.01)
        assert ask(chooser, seeing(vision_mrr=0.1), GOAL).reason == "plan"


def test_sequences_are_rolled_out_and_the_best_is_taken() -> None:
    service = FakeService()
    chooser = arbiter(service)
    sequences = [["left", "left"], ["right", "down"], ["noop", "noop"]]
    decision = ask(chooser, seeing(), GOAL, sequences=sequences)
    assert (decision.reason, decision.sequence) == ("rollout", ("right", "down"))
    assert decision.score == pytest.approx(-np.mean([np.sqrt(4), np.sqrt(2.5)]), abs=0.3)
    assert (service.count("/rollout"), service.count("/plan")) == (3, 0)
    leftmost = ask(chooser, seeing(), sequences=sequences, score=lambda r: -r.z_cls_seq[-1, 0])
    assert leftmost.action == "left"
    assert ask(chooser, seeing(), sequences=sequences).score == pytest.approx(0.9)


def test_a_service_that_goes_away_leaves_the_plan() -> None:
    service = FakeService()
    chooser = arbiter(service, horizon=3)
    assert ask(chooser, seeing(), GOAL).reason == "plan"
    service.away = True
    reasons = [ask(chooser, seeing(), GOAL).reason for _ in range(4)]
    assert reasons == ["remembered", "remembered", "away", "away"]
    assert chooser.client.total_errors == 1  # it pauses before it asks again
    chooser.reset()
    assert ask(chooser, seeing(), GOAL).action == "noop"


def test_what_is_wanted_must_be_said() -> None:
    chooser = arbiter(FakeService())
    for wanted in ({}, {"goal": GOAL, "scoring": "far"}, {"sequences": []}, {"sequences": [[]]}):
        with pytest.raises(ValueError, match="expected"):
            ask(chooser, seeing(), **wanted)
    with pytest.raises(ValueError, match="encode the picture first"):
        ask(chooser, seeing(), picture(1, 1), sequences=[["up"]])
    with pytest.raises(ConfigError, match=r"arbiter\.act 9 exceeds"):
        ArbiterConfig(act=9)


@given(
    st.lists(
        st.tuples(
            st.booleans(),  # away
            st.sets(st.sampled_from(["/plan", "/rollout"])),
            st.one_of(st.floats(0, 5), st.just(float("nan"))),  # surprise
            st.one_of(st.floats(0, 1), st.just(float("nan"))),  # confidence
            st.booleans(),  # whether anything is seen
            st.booleans(),  # sequences
        ),
        max_size=8,
    ),
    st.sampled_from(["slow", "wait"]),
    st.integers(1, 3),
)
def test_there_is_always_an_action(steps: list[Any], on_surprise: str, act: int) -> None:
    service = FakeService()

    async def reasoner(state: VisionState) -> str | None:
        return "up"

    chooser = arbiter(service, reasoner, on_surprise=on_surprise, act=act, horizon=3)

    async def scenario() -> None:
        for away, broken, surprise, mrr, seen, listed in steps:
            service.away, service.broken = away, broken
            state = seeing(vision_prediction_surprise=surprise, vision_mrr=mrr)
            if not seen:
                state.vision_core_latent = None
            sequences = [["left"], ["right", "up"]] if listed else None
            decision = await chooser.request_action(state, GOAL, sequences=sequences)
            assert decision.action in MOVES
            assert decision.sequence[0] == decision.action
            assert (decision.reason == "blind") == (not seen)

    asyncio.run(scenario())

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
from fakeservice import MOVES, SCALE, FakeService, picture
from hypothesis import given
from hypothesis import strategies as st

from iwm.agents import BeingState, IWMPerceptionModule
from iwm.agents.abstraction import AbstractionMeter
from iwm.client import IWMClient


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def module(service: FakeService, **settings: Any) -> IWMPerceptionModule:
    client = IWMClient("http://test", retries=0, transport=httpx.MockTransport(service))
    return IWMPerceptionModule(client=client, **settings)


def run(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(scenario())


def test_what_is_seen_is_written() -> None:
    service, state = FakeService(), BeingState()
    eyes = module(service)

    async def scenario() -> None:
        assert await eyes.process_frame(picture(5, 5), state)
        assert state.vision_core_latent_prev is None
        np.testing.assert_array_equal(state.vision_core_latent, [5, 5])
        assert await eyes.process_frame(picture(6, 5), state, action_taken="right")
        np.testing.assert_array_equal(state.vision_core_latent_prev, [5, 5])
        assert (state.vision_prediction_surprise, state.vision_mrr) == (0.0, 0.9)
        assert await eyes.process_frame(picture(16, 5), state, "right")
        assert state.vision_prediction_surprise == 9 * SCALE
        assert state.vision_core_timestamp > 0
        stats = eyes.get_stats()
        assert (stats["frames_processed"], stats["high_surprises"]) == (3, 1)
        assert stats["max_surprise"] == 9 * SCALE
        assert stats["mean_surprise"] == pytest.approx(4.5 * SCALE)

    run(scenario)
    assert service.count("/surprise") == 2


@pytest.mark.parametrize("action", [None, "dance", "right"])
def test_without_a_known_action_surprise_is_against_a_prediction_without_one(
    action: str | None,
) -> None:
    service, state = FakeService(), BeingState()
    service.named = action != "right"
    eyes = module(service)

    async def scenario() -> None:
        for x in (5, 9, 13):
            assert await eyes.process_frame(picture(x, 5), state, action)
        assert state.vision_prediction_surprise == pytest.approx(4 * SCALE)
        assert state.vision_mrr == 0.9

    run(scenario)
    # A name that was refused once is not sent again.
    assert sum(body.get("action") is not None for _, body in service.asked) <= 2
    assert service.count("/model") == 1


def test_an_action_of_numbers_goes_out_as_numbers() -> None:
    service, state = FakeService(), BeingState()
    eyes = module(service)

    async def scenario() -> None:
        for _ in range(2):
            assert await eyes.process_frame(picture(5, 5), state, np.array([0.5, 0.25]))

    run(scenario)
    body = next(body for path, body in service.asked if path == "/surprise")
    assert body["aug_params"] == [0.5, 0.25]


def test_any_object_with_the_attributes_is_a_state() -> None:
    state = SimpleNamespace(**vars(BeingState()), mood="curious")
    eyes = module(FakeService(), enable_dual=True)

    async def scenario() -> None:
        assert await eyes.process_frame(picture(5, 6), state)

    run(scenario)
    np.testing.assert_array_equal(state.vision_semantic, [5, 6])
    np.testing.assert_array_equal(state.vision_equivariant, [10, 12])


def test_a_service_without_streams_is_asked_for_them_once() -> None:
    service, state = FakeService(), BeingState()
    service.broken = {"/encode_dual"}
    eyes = module(service, enable_dual=True)

    async def scenario() -> None:
        for _ in range(3):
            assert await eyes.process_frame(picture(5, 6), state, "noop")
        assert service.count("/encode_dual") == 1
        service.broken = set()
        assert await eyes.check_health()
        assert await eyes.process_frame(picture(5, 6), state, "noop")

    run(scenario)
    np.testing.assert_array_equal(state.vision_semantic, [5, 6])


def test_a_model_without_calibration_leaves_confidence_alone() -> None:
    service, state = FakeService(), BeingState(vision_mrr=0.25)
    service.mrr = None  # type: ignore[assignment]
    eyes = module(service, enable_surprise=False)

    async def scenario() -> None:
        for _ in range(2):
            assert await eyes.process_frame(picture(5, 5), state, "noop")

    run(scenario)
    assert (state.vision_mrr, state.vision_prediction_surprise) == (0.25, 0.0)
    assert service.count("/surprise") == 0


def test_the_abstraction_index_is_measured_now_and_then() -> None:
    service, state = FakeService(), BeingState()
    eyes = module(service, abstraction_every=2)

    async def scenario() -> None:
        for x in (10, 10, 250, 250, 10, 10, 250):
            assert await eyes.process_frame(picture(x, 0), state)

    run(scenario)
    assert 0.0 < state.vision_abstraction_index < 1.0
    assert service.count("/encode") == 7 + 4


@given(st.lists(st.tuples(st.floats(-9, 9), st.floats(-9, 9)), min_size=2))
def test_the_index_is_a_share(pairs: list[tuple[float, float]]) -> None:
    meter, still = AbstractionMeter(), AbstractionMeter()
    for number, (z, moved) in enumerate(pairs):
        here = np.array([z, 0.0])
        index = meter.update(here, np.array([moved, 0.0]))
        assert index is None or 0.0 <= index <= 1.0
        assert still.update(np.array([number, 0.0]), np.array([number, 0.0])) in (None, 1.0)


def test_a_service_that_is_away_costs_nothing_and_comes_back() -> None:
    service, state, clock = FakeService(), BeingState(), Clock()
    eyes = module(service, clock=clock, enable_rollouts=True)

    async def scenario() -> None:
        assert await eyes.process_frame(picture(5, 5), state)
        service.away = True
        seen = dict(vars(state))
        for _ in range(100):
            assert not await eyes.process_frame(picture(6, 5), state, "right")
            assert await eyes.imagine_future(state, ["right"]) is None
        assert vars(state) == seen
        assert eyes.client.total_errors == 1  # and 99 frames without a question
        assert not eyes.get_stats()["service_available"]
        assert eyes.get_stats()["frames_missed"] == 100
        clock.now += 1.0
        assert not await eyes.process_frame(picture(6, 5), state)
        assert eyes.client.total_errors == 2
        clock.now += 1.0  # now it pauses for two
        assert not await eyes.process_frame(picture(6, 5), state)
        assert eyes.client.total_errors == 2
        assert not await eyes.check_health()
        service.away = False
        assert await eyes.check_health()
        assert await eyes.process_frame(picture(6, 5), state, "right")
        assert eyes.get_stats()["service_available"]
        await eyes.close()

    run(scenario)


@given(
    broken=st.sets(
        st.sampled_from(["/encode", "/predict", "/surprise", "/model", "/encode_dual", "/rollout"])
    ),
    actions=st.lists(st.sampled_from([None, "dance", [0.5], *MOVES]), max_size=5),
    named=st.booleans(),
)
def test_no_failure_of_the_service_reaches_the_loop(
    broken: set[str], actions: list[Any], named: bool
) -> None:
    service, state = FakeService(), BeingState()
    service.broken, service.named = broken, named
    eyes = module(service, enable_dual=True, enable_rollouts=True, abstraction_every=2)

    async def scenario() -> None:
        for number, action in enumerate(actions):
            seen = await eyes.process_frame(picture(number, 5), state, action)
            assert seen == ("/encode" not in broken)
            assert state.vision_prediction_surprise >= 0
            await eyes.imagine_future(state, ["right", "left"])

    run(scenario)


def test_imagining() -> None:
    eyes, state = module(FakeService(), enable_rollouts=True), BeingState()
    closed = module(FakeService())

    async def scenario() -> None:
        assert await eyes.imagine_future(state, ["right"]) is None  # nothing seen yet
        await eyes.process_frame(picture(5, 5), state)
        assert await closed.imagine_future(state, ["right"]) is None
        rolled = await eyes.imagine_future(state, ["right", "up"])
        assert rolled is not None
        np.testing.assert_array_equal(rolled.z_cls_seq, [[6, 5], [6, 6]])
        rolled = await eyes.imagine_future(state, [[0.5], [0.0]])
        assert rolled is not None
        assert rolled.z_cls_seq.shape == (2, 2)
        assert await eyes.imagine_future(state, []) is None

    run(scenario)


def test_a_frame_that_is_no_picture_is_a_mistake_of_the_agent() -> None:
    async def scenario() -> None:
        with pytest.raises(ValueError, match="expected uint8"):
            await module(FakeService()).process_frame(np.zeros((4, 4, 3)), BeingState())  # type: ignore[arg-type]

    run(scenario)

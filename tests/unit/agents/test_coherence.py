from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iwm.agents import BeingState, TemporalCoherence


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def state(surprise: float, frame: float) -> BeingState:
    return BeingState(vision_prediction_surprise=surprise, vision_core_timestamp=frame)


def test_it_falls_once_for_a_frame_and_recovers() -> None:
    clock = Clock()
    coherence = TemporalCoherence(clock=clock)
    assert coherence.update(state(3.0, 1)) == 1.0  # not above
    assert coherence.update(state(3.1, 2)) == pytest.approx(0.9)
    assert coherence.update(state(3.1, 2)) == pytest.approx(0.9)  # the same frame
    assert coherence.update(state(9.0, 3)) == pytest.approx(0.8)
    clock.now = 5.0
    assert coherence.value == pytest.approx(0.9)
    clock.now = 60.0
    assert coherence.update(state(0.1, 4)) == 1.0


@given(
    st.lists(
        st.tuples(st.one_of(st.floats(0, 10), st.just(float("nan"))), st.floats(0, 100, width=32))
    )
)
def test_it_stays_between_0_and_1(steps: list[tuple[float, float]]) -> None:
    clock = Clock()
    coherence = TemporalCoherence(clock=clock)
    for number, (surprise, pause) in enumerate(steps):
        clock.now += pause
        before = coherence.value
        after = coherence.update(state(surprise, number))
        assert 0.0 <= after <= before <= 1.0

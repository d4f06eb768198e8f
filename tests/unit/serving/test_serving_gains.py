"""Whether company pays: small batches where it does not, whole ones elsewhere."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iwm.serving import gains
from iwm.serving.gains import Gains


def test_what_was_never_measured_is_tried_whole() -> None:
    assert Gains().limit(1, 16) == 16


def test_a_batch_that_saves_nothing_is_not_made() -> None:
    costs = Gains()
    costs.observe(1, 1, 0.05)
    assert costs.limit(1, 16) == 16
    costs.observe(1, 16, 0.8)
    assert costs.limit(1, 16) == 1
    assert costs.limit(2, 16) == 16  # of another kind


def test_no_batch_is_made_that_takes_too_long() -> None:
    costs = Gains()
    costs.observe(1, 1, 0.3)
    assert costs.limit(1, 16) == 3
    costs.observe(1, 3, 0.6)
    assert costs.limit(1, 16) == 5
    costs.observe(1, 1, 5.0)
    assert costs.limit(1, 1) == 1


def test_a_batch_that_saves_time_is_made() -> None:
    costs = Gains()
    costs.observe(1, 1, 0.09)
    costs.observe(1, 2, 0.17)
    costs.observe(1, 16, 0.25)
    assert costs.limit(1, 16) == 16
    assert costs.limit(1, 2) == 1


def test_short_batches_are_not_weighed() -> None:
    costs = Gains()
    costs.observe(1, 1, 0.001)
    costs.observe(1, 16, 0.016)
    assert costs.limit(1, 16) == 16


def test_old_figures_are_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(gains.time, "monotonic", lambda: now)
    costs = Gains()
    costs.observe(1, 1, 0.25)
    costs.observe(1, 16, 4.0)
    assert costs.limit(1, 16) == 1
    now = gains.FRESH_S + 1
    assert costs.limit(1, 16) == 16


@given(
    st.lists(st.tuples(st.integers(0, 200), st.integers(1, 32), st.floats(1e-5, 10))),
    st.integers(0, 200),
    st.integers(1, 32),
)
def test_somebody_is_always_taken_and_memory_is_bounded(
    seen: list[tuple[int, int, float]], kind: int, waiting: int
) -> None:
    costs = Gains()
    for each in seen:
        costs.observe(*each)
    assert 1 <= costs.limit(kind, waiting) <= waiting
    assert len(costs._costs) <= gains.MOST_KINDS

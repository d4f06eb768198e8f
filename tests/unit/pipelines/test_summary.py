from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines._summary import interval, must_beat, number
from pipelines.report import flatten


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (True, "True"),
        ("ok", "ok"),
        (22000, "22,000"),
        (0.02392, "0.02392"),
        (0.635214, "0.6352"),
        (12000.0, "12,000"),
        (0, "0"),
    ],
)
def test_figures_for_people(value: object, text: str) -> None:
    assert number(value) == text


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_figure_keeps_its_size(value: float) -> None:
    assert float(number(value).replace(",", "")) == pytest.approx(value, rel=1e-3)


def test_a_rule_in_words() -> None:
    rule = {
        "value": 0.6352,
        "low": 0.5602,
        "high": 0.7117,
        "baseline": "mrr.chance",
        "baseline_value": 0.0239,
        "threshold": 0.1196,
    }
    assert interval(rule) == "0.6352 [0.5602, 0.7117]"
    assert must_beat(rule) == "mrr.chance 0.0239"
    constant = {**rule, "baseline": None, "low": None}
    assert (interval(constant), must_beat(constant)) == ("0.6352", "0.1196")


def test_every_figure_of_a_report_is_listed_by_its_dotted_name() -> None:
    figure = {"mean": 1.0, "low": None, "high": None, "n": 3}
    metrics = {"profile": "cpu", "mrr": {"model": figure, "chance": figure}, "rank": figure}
    assert [name for name, _ in flatten(metrics)] == ["mrr.model", "mrr.chance", "rank"]

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iwm.errors import ConfigError
from iwm.evaluation.config import Rule
from iwm.evaluation.gates import evaluate_gate, failure, judge


def fig(mean: float, low: float | None = None, high: float | None = None) -> dict[str, float]:
    return {
        "mean": mean,
        "low": mean if low is None else low,
        "high": mean if high is None else high,
        "n": 10,
    }


METRICS: dict[str, Any] = {
    "profile": "cpu",
    "weights_sha256": "ab",
    "mrr": {
        "model": fig(0.081, 0.07, 0.09),
        "chance": fig(0.0239),
        "identity": fig(0.03, 0.02, 0.075),
    },
    "collapse": {"effective_rank": fig(12.0, 11.0, 12.0)},
}


@pytest.mark.parametrize(
    ("rule", "passed"),
    [
        (Rule(figure="mrr.model", above=0.06), True),
        (Rule(figure="mrr.model", above=0.075), False),  # the mean passes, its interval does not
        (Rule(figure="mrr.model", below=0.1), True),
        (Rule(figure="mrr.model", below=0.085), False),
        (Rule(figure="mrr.model", baseline="mrr.chance", times=2.5), True),
        (Rule(figure="mrr.model", baseline="mrr.chance", times=5.0), False),
        (Rule(figure="mrr.model", baseline="mrr.chance"), True),
        (Rule(figure="mrr.model", baseline="mrr.identity"), False),  # intervals overlap
        (Rule(figure="collapse.effective_rank", above=8.0), True),
    ],
)
def test_rules(rule: Rule, passed: bool) -> None:
    entry = judge(rule, METRICS, "core")
    assert (entry["verdict"] == "pass") is passed
    assert (entry["missed_by"] == 0) is passed
    assert {"figure", "value", "low", "high", "baseline", "threshold", "why"} <= set(entry)


def test_the_report_and_the_line_of_a_failure() -> None:
    rules = (
        Rule(figure="collapse.effective_rank", above=8.0),
        Rule(figure="mrr.model", baseline="mrr.chance", times=5.0, why="it learns"),
        Rule(figure="mrr.model", baseline="mrr.identity"),
    )
    report = evaluate_gate("core", rules, METRICS)
    assert report["passed"] is False
    assert [rule["verdict"] for rule in report["rules"]] == ["pass", "fail", "fail"]
    assert report["weights_sha256"] == "ab"
    assert failure(report) == (
        "gate core failed: mrr.model 0.081 [0.070, 0.090] not above 0.120 "
        "(5 x chance 0.0239), missed by 0.050; 1 more of 3 rules failed"
    )
    assert evaluate_gate("core", rules[:1], METRICS)["passed"] is True


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ((), "no rules"),
        ((Rule(figure="mrr.nothing", above=1.0),), "no figure 'mrr.nothing'"),
        ((Rule(figure="mrr", above=1.0),), "no figure 'mrr'"),
        ((Rule(figure="mrr.model"),), "exactly one"),
        ((Rule(figure="mrr.model", above=1.0, below=2.0),), "exactly one"),
        ((Rule(figure="mrr.model", times=2.0),), "go together"),
        ((Rule(figure="mrr.model", above=0.1, baseline="mrr.chance"),), "go together"),
    ],
)
def test_a_gate_that_cannot_judge_is_an_error(rules: tuple[Rule, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        evaluate_gate("core", rules, METRICS)


@given(st.floats(-10, 10), st.floats(0, 5), st.floats(-10, 10))
def test_a_failure_is_missed_by_what_the_interval_lacks(
    mean: float, half: float, threshold: float
) -> None:
    metrics = {"a": fig(mean, mean - half, mean + half)}
    entry = judge(Rule(figure="a", above=threshold), metrics, "g")
    if entry["verdict"] == "fail":
        assert entry["missed_by"] == pytest.approx(threshold - (mean - half))
        assert entry["missed_by"] >= 0

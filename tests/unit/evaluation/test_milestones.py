"""Capabilities are what gate reports prove, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest

from iwm.config import Params, resolve_profile
from iwm.evaluation.config import Rule
from iwm.evaluation.milestones import CAPABILITIES, DYNAMICS, TOKENIZER, capabilities, milestones
from iwm.settings import parse

FULL = parse(Params, resolve_profile("gpu", environ={}), "profiles.yaml").gate


def entry(figure: str, low: float, threshold: float = 0.0, comparison: str = ">") -> dict[str, Any]:
    passed = low > threshold if comparison == ">" else low < threshold
    return {
        "figure": figure,
        "value": low,
        "low": low,
        "high": low,
        "comparison": comparison,
        "threshold": threshold,
        "verdict": "pass" if passed else "fail",
    }


def gates(psnr: float = 31.0, agreement: float = 0.95) -> dict[str, Any]:
    return {
        TOKENIZER: {
            "rules": [entry("reconstruction.psnr", psnr, 27.0), entry("jpeg.gain_psnr", 1.0)]
        },
        DYNAMICS: {
            "rules": [
                entry("next_frame.moving.gain_copy_last", 2.0, 1.0),
                entry("next_frame.moving.gain_copy_tokens", 2.0),
                entry("next_frame.tokens.gain_copy_last", 0.1),
                entry("sequence.context_1.k10.gain_copy_last", 0.5),
                entry("sequence.context_4.k30.gain_copy_last", 0.5),
                entry("sequence.context_4.k30.gain_unrelated", 0.5),
                entry("sequence.context_4.drift.model", 0.5, 1.5, "<"),
                entry("actions.delta_psnr.k4.delta", 0.4),
                entry("actions.inverse.relative", agreement, 0.5),
            ]
        },
    }


def test_everything_proved_is_all_and_nothing_is_none() -> None:
    assert capabilities(gates())["percentage"] == 100
    nothing = capabilities({})
    assert nothing["percentage"] == 0
    assert set(nothing["evidence"].values()) == {
        f"no gate report of {name}" for name in (TOKENIZER, DYNAMICS)
    }
    assert set(nothing["capabilities"]) == set(CAPABILITIES)


@pytest.mark.parametrize(
    ("dropped", "lost"),
    [
        ("jpeg.gain_psnr", {"static_reconstruction"}),
        ("next_frame.tokens.gain_copy_last", {"temporal_understanding"}),
        ("sequence.context_4.drift.model", {"maintains_coherence"}),
        ("actions.delta_psnr.k4.delta", {"responds_to_actions"}),
        ("reconstruction.psnr", {"static_reconstruction", "quality_psnr_30"}),
    ],
)
@pytest.mark.parametrize("how", ["missing", "failed"])
def test_a_rule_that_is_missing_or_failed_takes_its_capability(
    dropped: str, lost: set[str], how: str
) -> None:
    reports = gates()
    for report in reports.values():
        for rule in list(report["rules"]):
            if rule["figure"] == dropped:
                if how == "missing":
                    report["rules"].remove(rule)
                else:
                    rule["verdict"] = "fail"
    found = capabilities(reports)
    assert {name for name, held in found["capabilities"].items() if not held} == lost
    assert found["percentage"] == 100 * (8 - len(lost)) / 8


def test_a_mild_gate_that_passed_proves_no_more_than_it_shows() -> None:
    found = capabilities(gates(psnr=28.0, agreement=0.7))
    assert not found["capabilities"]["quality_psnr_30"]
    assert "28 [28, 28] is not above 30" in found["evidence"]["quality_psnr_30"]
    assert not found["capabilities"]["control_accurate"]
    assert found["capabilities"]["static_reconstruction"]
    assert found["percentage"] == 75


def test_the_full_gate_has_a_rule_for_every_capability() -> None:
    for proof in CAPABILITIES.values():
        rules = [entry(rule.figure, 1e9) for rule in FULL[proof.gate]]
        found = capabilities({proof.gate: {"rules": rules}})
        assert "has no rule" not in " ".join(
            why for name, why in found["evidence"].items() if CAPABILITIES[name].gate == proof.gate
        )


def test_milestones_tell_the_profiles_gate_from_the_full_one() -> None:
    psnr = {"mean": 28.0, "low": 27.9, "high": 28.1, "n": 9}
    metrics = {TOKENIZER: {"reconstruction": {"psnr": psnr}}}
    full = {
        TOKENIZER: (Rule(figure="reconstruction.psnr", above=30.0), Rule(figure="x.y", above=1))
    }
    first, second, *_ = milestones(gates(psnr=28.0), metrics, full)
    assert (first["milestone"], first["passed"], first["full_passed"]) == (1, True, False)
    assert [rule["verdict"] for rule in first["full"]] == ["fail", "not measured"]
    assert (second["passed"], second["full_passed"]) == (True, False)
    assert not milestones({}, metrics, full)[0]["passed"]

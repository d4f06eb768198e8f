"""The benchmark of communicating agents: its figures and its table."""

from __future__ import annotations

import pytest

from benchmarks.communication import table, trial, wilson


def test_wilson() -> None:
    # Newcombe (1998), table I: 81 of 263, and none of 20.
    figure = wilson(81, 263)
    assert figure["low"] == pytest.approx(0.2553, abs=5e-4)
    assert figure["high"] == pytest.approx(0.3662, abs=5e-4)
    none = wilson(0, 20)
    assert (none["mean"], none["low"]) == (0.0, 0.0)
    assert none["high"] == pytest.approx(0.1611, abs=5e-4)


def test_a_trial_in_small(capsys: pytest.CaptureFixture[str]) -> None:
    """Every arm is trained and measured on the same boards."""
    found = trial("6x2", 2, updates=2, games=8, tests=20, arms=("silent", "bit", "intention"))
    assert set(found["arms"]) == {"silent", "bit", "intention"}
    for row in found["arms"].values():
        assert row["success"]["n"] == 40
        assert row["success"]["mean"] <= row["agents_in_time"] <= 1
        shares = list(row["by_slack"].values())
        assert shares == sorted(shares)
        assert shares[0] == pytest.approx(row["success"]["mean"])
    assert found["messages"]["bytes_max"] <= 49
    assert found["transitions_exact"] == 1.0
    assert -1 <= found["intention_minus_silent"]["mean"] <= 1
    table([found])
    printed = capsys.readouterr().out
    assert "agents at work when" in printed
    assert "goal: intentions win 95% of games on 6x2" in printed

from __future__ import annotations

from pathlib import Path

from flows.outcome import gate_rows, metric_rows
from iwm.files import write_json


def test_rows_of_gates_and_metrics(tmp_path: Path) -> None:
    rule = {
        "figure": "mrr.model",
        "value": 0.123456,
        "low": 0.1,
        "high": 0.2,
        "baseline": "mrr.chance",
        "baseline_value": 0.02,
        "threshold": 0.1,
        "verdict": "pass",
        "missed_by": None,
        "why": "it learned",
    }
    write_json(tmp_path / "gates" / "core.json", {"gate": "core", "passed": True, "rules": [rule]})
    (tmp_path / "gates" / "torn.json").write_text("{")
    figure = {"mean": 0.5, "low": 0.4, "high": 0.6, "n": 256}
    write_json(
        tmp_path / "metrics" / "core.json",
        {"mrr": {"model": figure}, "collapse.effective_rank": figure, "profile": "cpu"},
    )
    (row,) = gate_rows(tmp_path)
    assert (row["gate"], row["value"], row["missed by"], row["verdict"]) == (
        "gate@core",
        "0.1235",
        "",
        "pass",
    )
    assert {(row["figure"], row["mean"], row["n"]) for row in metric_rows(tmp_path)} == {
        ("mrr.model", "0.5", "256"),
        ("collapse.effective_rank", "0.5", "256"),
    }


def test_no_reports_no_rows(tmp_path: Path) -> None:
    assert gate_rows(tmp_path) == []
    assert metric_rows(tmp_path) == []

"""Gates: a figure, its interval, a baseline, a threshold, a verdict, in JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from iwm.errors import ConfigError
from iwm.evaluation.config import Rule


def figure(metrics: Mapping[str, Any], key: str, gate: str) -> Mapping[str, float]:
    """The figure at a dotted key of a metrics report.

    Raises:
        ConfigError: there is none.
    """
    node: Any = metrics
    for part in key.split("."):
        node = node.get(part) if isinstance(node, Mapping) else None
    if not isinstance(node, Mapping) or not {"mean", "low", "high"} <= set(node):
        raise ConfigError(f"gate.{gate}: the metrics report has no figure {key!r}")
    return node


def judge(rule: Rule, metrics: Mapping[str, Any], gate: str) -> dict[str, Any]:
    """One rule's entry in the gate report.

    The whole interval must pass, not the mean alone: ``above`` and ``times`` compare the
    interval's lower end, ``below`` its upper end, a bare ``baseline`` the lower end with
    the baseline's upper end.

    Raises:
        ConfigError: a figure is missing, or the rule says nothing or two things.
    """
    said = [name for name in ("above", "below", "times") if getattr(rule, name) is not None]
    if len(said) > 1 or (not said and rule.baseline is None):
        raise ConfigError(
            f"gate.{gate}: the rule for {rule.figure} needs exactly one of above, below, "
            f"times with baseline, or baseline alone"
        )
    if (rule.times is not None and rule.baseline is None) or (
        rule.baseline is not None and said and rule.times is None
    ):
        raise ConfigError(
            f"gate.{gate}: the rule for {rule.figure}: times and baseline go together"
        )
    value = figure(metrics, rule.figure, gate)
    base = None if rule.baseline is None else figure(metrics, rule.baseline, gate)
    if rule.below is not None:
        threshold, missed = rule.below, value["high"] - rule.below
        passed = value["high"] < threshold
    else:
        if rule.above is not None:
            threshold = rule.above
        elif base is not None and rule.times is not None:
            threshold = rule.times * base["mean"]
        else:
            assert base is not None
            threshold = base["high"]
        missed = threshold - value["low"]
        passed = value["low"] > threshold
    return {
        "figure": rule.figure,
        "value": value["mean"],
        "low": value["low"],
        "high": value["high"],
        "baseline": rule.baseline,
        "baseline_value": None if base is None else base["mean"],
        "times": rule.times,
        "comparison": "<" if rule.below is not None else ">",
        "threshold": threshold,
        "verdict": "pass" if passed else "fail",
        "missed_by": 0.0 if passed else missed,
        "why": rule.why,
    }


def evaluate_gate(gate: str, rules: Sequence[Rule], metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The gate report: ``{"gate", "passed", "weights_sha256", "rules": [...]}``.

    Raises:
        ConfigError: no rules, a rule that says nothing, or a figure that is missing.
    """
    if not rules:
        raise ConfigError(f"gate.{gate}: has no rules; no gate is ever switched off")
    judged = [judge(rule, metrics, gate) for rule in rules]
    return {
        "gate": gate,
        "passed": all(entry["verdict"] == "pass" for entry in judged),
        # The verdict is on these weights and this data, and on no others.
        **{key: metrics.get(key) for key in ("profile", "weights_sha256", "data_revision")},
        "rules": judged,
    }


def failure(report: Mapping[str, Any]) -> str:
    """One line: the gate, its first miss with interval, threshold and distance, how many more."""
    missed = [entry for entry in report["rules"] if entry["verdict"] == "fail"]
    entry = missed[0]
    inverse = {">": "not above", "<": "not below"}[entry["comparison"]]
    origin = ""
    if entry["baseline"] is not None:
        name = entry["baseline"].rsplit(".", 1)[-1].replace("_", " ")
        times = f"{entry['times']:g} x " if entry["times"] is not None else "upper end of "
        origin = f" ({times}{name} {entry['baseline_value']:.4f})"
    more = f"; {len(missed) - 1} more of {len(report['rules'])} rules failed" if missed[1:] else ""
    return (
        f"gate {report['gate']} failed: {entry['figure']} {entry['value']:.3f} "
        f"[{entry['low']:.3f}, {entry['high']:.3f}] {inverse} {entry['threshold']:.3f}{origin}, "
        f"missed by {entry['missed_by']:.3f}{more}"
    )

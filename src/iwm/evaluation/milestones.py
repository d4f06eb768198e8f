"""Milestones and capabilities, computed from gate reports and never typed in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from iwm.errors import ConfigError
from iwm.evaluation.config import Rule
from iwm.evaluation.gates import judge

TOKENIZER, DYNAMICS = "vqvae", "vqvae-dynamics"


@dataclass(frozen=True)
class Proof:
    """What proves a capability: rules of a gate report, by patterns of their figures.

    Every pattern must match a rule, and every rule that matches must have passed. ``above``
    asks for more than a gate may: the figures' lower ends must lie above it, whatever
    threshold the profile's gate sets.
    """

    gate: str
    figures: tuple[str, ...]
    above: float | None = None


CAPABILITIES: dict[str, Proof] = {
    "static_reconstruction": Proof(TOKENIZER, ("reconstruction.psnr", "jpeg.gain_psnr")),
    "quality_psnr_30": Proof(TOKENIZER, ("reconstruction.psnr",), above=30.0),
    "next_frame_prediction": Proof(
        DYNAMICS, ("next_frame.moving.gain_copy_last", "next_frame.moving.gain_copy_tokens")
    ),
    "temporal_understanding": Proof(DYNAMICS, ("next_frame.tokens.gain_copy_last",)),
    "sequence_generation": Proof(DYNAMICS, ("sequence.*.gain_copy_last",)),
    "maintains_coherence": Proof(DYNAMICS, ("sequence.*.drift.model", "sequence.*.gain_unrelated")),
    "responds_to_actions": Proof(DYNAMICS, ("actions.delta_psnr.*.delta",)),
    "control_accurate": Proof(DYNAMICS, ("actions.inverse.relative",), above=0.9),
}


@dataclass(frozen=True)
class Milestone:
    """A milestone: the gate and the figures of it that decide."""

    title: str
    gate: str
    figures: tuple[str, ...]


MILESTONES = (
    Milestone("static reconstruction", TOKENIZER, ("*",)),
    Milestone("next-frame prediction", DYNAMICS, ("next_frame.*",)),
    Milestone("sequence generation", DYNAMICS, ("sequence.*", "truth.*")),
    Milestone("responds to actions", DYNAMICS, ("actions.*", "turning.*")),
)


def _matching(rules: Sequence[Mapping[str, Any]], pattern: str) -> list[Mapping[str, Any]]:
    return [rule for rule in rules if fnmatchcase(rule["figure"], pattern)]


def prove(proof: Proof, gate: Mapping[str, Any]) -> tuple[bool, str]:
    """Whether a gate report proves a capability, and by what or why not.

    Args:
        proof: what is asked.
        gate: the report of that gate; empty where there is none, or none of these weights.
    """
    if not gate:
        return False, f"no gate report of {proof.gate}"
    found: list[Mapping[str, Any]] = []
    for pattern in proof.figures:
        rules = _matching(gate["rules"], pattern)
        if not rules:
            return False, f"the gate {proof.gate} has no rule for {pattern}"
        found += rules
    for rule in found:
        where = f"{rule['figure']} {rule['value']:.4g} [{rule['low']:.4g}, {rule['high']:.4g}]"
        if rule["verdict"] != "pass":
            return False, f"{where} missed {rule['comparison']} {rule['threshold']:.4g}"
        if proof.above is not None and not rule["low"] > proof.above:
            return False, f"{where} is not above {proof.above:.4g}"
    return True, ", ".join(
        f"{rule['figure']} {rule['value']:.4g} {rule['comparison']} "
        f"{max(rule['threshold'], proof.above or rule['threshold']):.4g}"
        for rule in found
    )


def capabilities(gates: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The capability report.

    Args:
        gates: gate reports by gate; a missing one proves nothing.

    Returns:
        ``capabilities`` {name: bool}, ``evidence`` {name: by what or why not}, and
        ``percentage`` of those that are proved.
    """
    proved = {name: prove(proof, gates.get(proof.gate, {})) for name, proof in CAPABILITIES.items()}
    return {
        "capabilities": {name: held for name, (held, _) in proved.items()},
        "evidence": {name: why for name, (_, why) in proved.items()},
        "percentage": 100 * sum(held for held, _ in proved.values()) / len(proved),
    }


def milestones(
    gates: Mapping[str, Mapping[str, Any]],
    metrics: Mapping[str, Mapping[str, Any]],
    full: Mapping[str, Sequence[Rule]],
) -> list[dict[str, Any]]:
    """Each milestone under the profile's own gate, and held against the full one.

    Args:
        gates: gate reports by gate.
        metrics: metrics reports by gate.
        full: the full profile's rules by gate.

    Returns:
        For each ``milestone`` (from 1), ``title``, ``gate``, ``passed``, its ``rules`` under the
        profile's gate, ``full`` ones, and ``full_passed``. A figure that was not measured has
        not passed.
    """
    found = []
    for number, milestone in enumerate(MILESTONES, 1):
        name = milestone.gate
        rules = _some(gates.get(name, {}).get("rules", []), milestone.figures)
        wanted = [
            rule
            for rule in full.get(name, ())
            if any(fnmatchcase(rule.figure, pattern) for pattern in milestone.figures)
        ]
        judged = [_judge(rule, metrics.get(name, {}), name) for rule in wanted]
        found.append(
            {
                "milestone": number,
                "title": milestone.title,
                "gate": name,
                "passed": bool(rules) and all(rule["verdict"] == "pass" for rule in rules),
                "rules": rules,
                "full_passed": bool(judged) and all(r["verdict"] == "pass" for r in judged),
                "full": judged,
            }
        )
    return found


def _some(rules: Sequence[Mapping[str, Any]], patterns: Sequence[str]) -> list[Mapping[str, Any]]:
    return [r for r in rules if any(fnmatchcase(r["figure"], pattern) for pattern in patterns)]


def _judge(rule: Rule, metrics: Mapping[str, Any], gate: str) -> dict[str, Any]:
    try:
        return judge(rule, metrics, gate)
    except ConfigError:
        return {
            "figure": rule.figure,
            "value": None,
            "low": None,
            "high": None,
            "baseline": rule.baseline,
            "baseline_value": None,
            "threshold": rule.above if rule.below is None else rule.below,
            "comparison": ">" if rule.below is None else "<",
            "verdict": "not measured",
            "missed_by": None,
            "why": rule.why,
        }

"""The paper's claims, each one number a seed, decided by the interval over seeds."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from benchmarks.paper_claims.arms import ARMS
from iwm.evaluation.statistics import Figure

Verdict = Literal["reproduced", "not reproduced", "not decided"]
Results = Mapping[str, Sequence[Mapping[str, float]]]
"""Figures of every model: arm -> one mapping a seed, in order of seeds."""


def interval(values: Sequence[float], level: float = 0.95) -> Figure:
    """Mean of a few independent values with Student's t interval.

    Raises:
        ValueError: fewer than two values.
    """
    from scipy.stats import t

    if len(values) < 2:
        raise ValueError("an interval over seeds needs two of them")
    mean = float(np.mean(values))
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    half = float(t.ppf((1 + level) / 2, len(values) - 1)) * error
    return {"mean": mean, "low": mean - half, "high": mean + half, "n": len(values)}


def decide(figure: Figure, side: Literal["above", "below"], bound: float) -> Verdict:
    """Whether the whole interval lies on the claimed side of ``bound``, or on the other."""
    if figure["low"] > bound:
        return "reproduced" if side == "above" else "not reproduced"
    if figure["high"] < bound:
        return "reproduced" if side == "below" else "not reproduced"
    return "not decided"


@dataclass(frozen=True)
class Claim:
    """Something the paper found, and the number that must lie above or below a bound."""

    name: str
    text: str
    measured: str
    """What the number is."""
    per_seed: Callable[[Results, int], float]
    side: Literal["above", "below"]
    bound: Callable[[float], float]
    """From chance MRR to the bound."""
    paper: str
    """The paper's own number, for comparison."""

    def judge(self, results: Results, chance: float) -> dict[str, Any]:
        """The claim's row of the report."""
        seeds = len(next(iter(results.values())))
        figure = interval([self.per_seed(results, seed) for seed in range(seeds)])
        bound = self.bound(chance)
        return {
            "claim": self.text,
            "measured": self.measured,
            "figure": figure,
            "must_be": self.side,
            "bound": bound,
            "paper": self.paper,
            "verdict": decide(figure, self.side, bound),
        }


def rank_correlation(one: Sequence[float], other: Sequence[float]) -> float:
    """Spearman's; 0 where one of the two does not vary."""
    from scipy.stats import rankdata

    x, y = (rankdata(values) - (len(values) + 1) / 2 for values in (one, other))
    norm = math.sqrt(float((x @ x) * (y @ y)))
    return float(x @ y) / norm if norm else 0.0


def _mrr(results: Results, arm: str, seed: int) -> float:
    return results[arm][seed]["mrr"]


def _gain(arm: str) -> Callable[[Results, int], float]:
    return lambda results, seed: _mrr(results, arm, seed) - _mrr(results, "none", seed)


def _interaction(results: Results, seed: int) -> float:
    """Gain of depth with destructive operations, minus its gain with jitter alone."""
    hard = _mrr(results, "feature", seed) - _mrr(results, "shallow", seed)
    return hard - (_mrr(results, "jitter", seed) - _mrr(results, "shallow-jitter", seed))


def _trade(results: Results, seed: int) -> float:
    names = [arm.name for arm in ARMS]
    return rank_correlation(
        [_mrr(results, name, seed) for name in names],
        [results[name][seed]["probe"] for name in names],
    )


def _pretraining(results: Results, seed: int) -> float:
    figures = results["feature"][seed]
    return figures["tuned_pretrained"] - figures["tuned_random"]


_ZERO: Callable[[float], float] = lambda _: 0.0  # noqa: E731
_PAPER = {arm.name: arm.paper for arm in ARMS}
_PAPER_INTERACTION = (_PAPER["feature"] - _PAPER["shallow"]) - (
    _PAPER["jitter"] - _PAPER["shallow-jitter"]
)

CLAIMS = (
    Claim(
        "unconditioned",
        "without conditioning MRR is chance",
        "MRR, no conditioning; bound: twice chance",
        lambda results, seed: _mrr(results, "none", seed),
        "below",
        lambda chance: 2 * chance,
        f"{_PAPER['none']:.2f}",
    ),
    Claim(
        "sequence",
        "sequence conditioning makes a world model",
        "MRR, sequence minus none",
        _gain("sequence"),
        "above",
        _ZERO,
        f"{_PAPER['sequence'] - _PAPER['none']:.2f}",
    ),
    Claim(
        "feature",
        "feature conditioning makes a world model",
        "MRR, feature minus none",
        _gain("feature"),
        "above",
        _ZERO,
        f"{_PAPER['feature'] - _PAPER['none']:.2f}",
    ),
    Claim(
        "interaction",
        "a deeper predictor gains more where transformations are harder",
        "MRR, (deep - shallow) destructive minus (deep - shallow) jitter only",
        _interaction,
        "above",
        _ZERO,
        f"{_PAPER_INTERACTION:.2f}",
    ),
    Claim(
        "trade",
        "higher MRR goes with a lower linear probe",
        "rank correlation of MRR and probe over the arms",
        _trade,
        "below",
        _ZERO,
        "negative",
    ),
    Claim(
        "pretrained",
        "a pretrained predictor beats a random one",
        "R2 of fine-tuning, pretrained minus random",
        _pretraining,
        "above",
        _ZERO,
        "positive",
    ),
)

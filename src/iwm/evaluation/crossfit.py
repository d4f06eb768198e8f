"""Calibration fitted on some held-out episodes and measured on others, in turns.

Held-out episodes are few. So they are dealt into folds; each fold is measured with what the
others fitted, and no episode is ever measured with a table that it helped to fit. What is
released is fitted on all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from iwm.errors import DataError
from iwm.evaluation.anomalies import Case, merge
from iwm.evaluation.calibration import (
    SURPRISE_THRESHOLD,
    apply_table,
    calibration_curve,
    isotonic_table,
)
from iwm.evaluation.statistics import Figure, bootstrap_mean, constant
from iwm.evaluation.surprise import (
    KINDS,
    Surprise,
    Transitions,
    auroc,
    balanced,
    fit,
    quantile_figure,
    roc_curve,
)

Array = np.ndarray[Any, Any]


@dataclass
class Scored:
    """Transitions of held-out episodes for one way of predicting.

    ``ranked``: expected error (uncalibrated), reciprocal rank of the truth and episode of
    predictions, three arrays [n] each entry: what confidence is about.
    """

    ordinary: list[Transitions] = field(default_factory=list)
    cases: list[Case] = field(default_factory=list)
    ranked: list[tuple[Array, Array, Array]] = field(default_factory=list)

    def among(self, episodes: Array) -> Scored:
        """The part that lies in some episodes."""

        def rows(of: Array) -> Array:
            return np.isin(of, episodes)

        def some(seen: Transitions) -> Transitions:
            return seen.where(rows(seen.episode))

        cases = [replace(case, normal=some(case.normal), odd=some(case.odd)) for case in self.cases]
        ordinary = [some(seen) for seen in self.ordinary]
        return Scored(
            [seen for seen in ordinary if len(seen.claimed)],
            [case for case in cases if len(case.odd.claimed) and len(case.normal.claimed)],
            [(a[rows(c)], b[rows(c)], c[rows(c)]) for a, b, c in self.ranked],
        )

    def columns(self) -> tuple[Array, Array, Array]:
        """The three columns of ``ranked``."""
        errors, reciprocal, episode = zip(*self.ranked, strict=True)
        return np.concatenate(errors), np.concatenate(reciprocal), np.concatenate(episode)


@dataclass(frozen=True)
class Calibrated:
    """A fit, and what it was not fitted on."""

    surprise: Surprise
    tables: dict[str, Any]
    rest: Scored


def calibrate(fitting: Scored, rest: Scored) -> Calibrated:
    """Tables as ``calibration.json`` holds them, from ``fitting`` alone."""
    told = np.concatenate([seen.own_expectation for seen in fitting.ordinary])
    actual = np.concatenate([seen.distance for seen in fitting.ordinary])
    knots, measured = isotonic_table(told, actual, increasing=True)
    surprise = fit(fitting.ordinary, (knots, measured))
    errors, reciprocal, _ = fitting.columns()
    at, mrr = isotonic_table(apply_table(errors, knots, measured), reciprocal, increasing=False)
    tables = {
        "surprise_scale": surprise.scale["distance"],
        "surprise_threshold": SURPRISE_THRESHOLD,
        "error": {"predicted": knots, "measured": measured},
        "confidence": {"error": at, "mrr": mrr},
        "surprise": {"temperature": surprise.temperature, "scale": surprise.scale},
    }
    return Calibrated(surprise, tables, rest)


def in_turns(scored: Scored, folds: int, seed: int) -> list[Calibrated]:
    """Deal the episodes, recording by recording, and calibrate for each fold on the others.

    Raises:
        DataError: fewer than two held-out episodes.
    """
    generator = np.random.default_rng(seed)
    dealt: list[Array] = []
    for name in sorted({seen.name for seen in scored.ordinary}):
        own = [seen.episode for seen in scored.ordinary if seen.name == name]
        dealt.append(generator.permutation(np.unique(np.concatenate(own))))
    episodes = np.concatenate(dealt)
    if len(episodes) < 2:
        raise DataError("calibration needs at least two held-out episodes; record more")
    fold = np.arange(len(episodes)) % min(folds, len(episodes))
    return [
        calibrate(scored.among(episodes[fold != which]), scored.among(episodes[fold == which]))
        for which in range(int(fold.max()) + 1)
    ]


def calibration_figures(
    turns: list[Calibrated], boot: dict[str, int]
) -> tuple[dict[str, Figure], dict[str, Any]]:
    """How confidence and uncertainty hold on other episodes, and the curves to draw."""

    def uncertain(turn: Calibrated, told: Array) -> Array:
        return apply_table(
            told, turn.tables["error"]["predicted"], turn.tables["error"]["measured"]
        )

    seen = [(turn, part) for turn in turns for part in turn.rest.ordinary]
    expected = np.concatenate([uncertain(turn, part.own_expectation) for turn, part in seen])
    actual = np.concatenate([part.distance for _, part in seen])
    confidence, reciprocal, episode = [], [], []
    for turn in turns:
        errors, ranks, episodes = turn.rest.columns()
        table = turn.tables["confidence"]
        confidence.append(apply_table(uncertain(turn, errors), table["error"], table["mrr"]))
        reciprocal.append(ranks)
        episode.append(episodes)
    said, true, clusters = (np.concatenate(x) for x in (confidence, reciprocal, episode))
    curves = {
        "Confidence (reciprocal rank)": calibration_curve(said, true),
        "Uncertainty (distance)": calibration_curve(expected, actual),
    }
    gaps = [curve["ece"] for curve in curves.values()]
    return {
        "confidence_gap": constant(gaps[0], len(said)),
        "uncertainty_gap": constant(gaps[1], len(expected)),
        "confidence": bootstrap_mean(said, clusters, **boot),
        "reciprocal_rank": bootstrap_mean(true, clusters, **boot),
        "distance": bootstrap_mean(
            actual, np.concatenate([part.episode for _, part in seen]), **boot
        ),
    }, curves


def surprise_figures(turns: list[Calibrated], measure: str, boot: dict[str, int]) -> dict[str, Any]:
    """95th percentile of ordinary play and AUROC of every anomaly, for every measure.

    The chosen ``measure`` stands at the top, all of them under ``measures``. ``auroc`` is over
    all recordings, ``auroc_of`` over each.
    """
    seen = [(turn.surprise, part) for turn in turns for part in turn.rest.ordinary]
    weights = balanced([part for _, part in seen])
    cases = _cases(turns)
    found: dict[str, Any] = {}
    for kind in KINDS:
        scores = [surprise(kind, part) for surprise, part in seen]

        def p95(name: str | None, scores: list[Array] = scores) -> Figure:
            rows = [i for i, (_, part) in enumerate(seen) if name in (None, part.name)]
            return quantile_figure(
                np.concatenate([scores[i] for i in rows]),
                np.concatenate([weights[i] for i in rows]),
                np.concatenate([seen[i][1].episode for i in rows]),
                **boot,
            )

        found[kind] = {
            "p95": p95(None),
            "p95_of": {name: p95(name) for name in sorted({part.name for _, part in seen})},
            "above_threshold": bootstrap_mean(
                (np.concatenate(scores) > SURPRISE_THRESHOLD).astype(float),
                np.concatenate([part.episode for _, part in seen]),
                **boot,
            ),
            "auroc": {name: _auroc(both, kind, boot) for name, both in cases.items()},
            "auroc_of": {
                name: {
                    where: _auroc([one for one in both if one[1].normal.name == where], kind, boot)
                    for where in sorted({case.normal.name for _, case in both})
                }
                for name, both in cases.items()
            },
        }
    shares = {
        f"{name}_share": constant(
            float(np.mean([case.share for _, case in both])),
            sum(len(case.odd.claimed) for _, case in both),
        )
        for name, both in cases.items()
    }
    return {**found[measure], **shares, "measures": found}


def roc_curves(turns: list[Calibrated], measure: str) -> dict[str, dict[str, list[float]]]:
    """Curves of every anomaly under one measure."""
    return {
        name: roc_curve(
            np.concatenate([surprise(measure, case.normal) for surprise, case in both]),
            np.concatenate([surprise(measure, case.odd) for surprise, case in both]),
        )
        for name, both in _cases(turns).items()
    }


_Both = list[tuple[Surprise, Case]]


def _cases(turns: list[Calibrated]) -> dict[str, _Both]:
    """Every anomaly by kind, each with the fit that its episodes had no part in."""
    found: dict[str, _Both] = {}
    for kind in merge([case for turn in turns for case in turn.rest.cases]):
        found[kind] = [
            (turn.surprise, case) for turn in turns for case in turn.rest.cases if case.kind == kind
        ]
    return found


def _auroc(both: _Both, kind: str, boot: dict[str, int]) -> Figure:
    def scores(of: Callable[[Case], Transitions]) -> tuple[Array, Array]:
        values = [surprise(kind, of(case)) for surprise, case in both]
        return np.concatenate(values), np.concatenate([of(case).episode for _, case in both])

    normal, normal_episode = scores(lambda case: case.normal)
    odd, odd_episode = scores(lambda case: case.odd)
    return auroc(normal, normal_episode, odd, odd_episode, **boot)

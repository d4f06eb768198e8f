"""Means with honest intervals: frames of one episode are not independent."""

from __future__ import annotations

from typing import Any

import numpy as np

Figure = dict[str, Any]
"""``{"mean": x, "low": l, "high": h, "n": n}``: one figure of a metrics report."""


def interval(figure: Figure) -> str:
    """A figure and its interval for people: ``0.857 [0.825, 0.890]``."""
    return f"{figure['mean']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]"


def bootstrap_mean(
    values: np.ndarray[Any, Any],
    clusters: np.ndarray[Any, Any],
    *,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Figure:
    """Mean with a percentile interval from resampling whole clusters.

    Args:
        values: [n] measurements.
        clusters: [n] labels (episodes); all values of a label move together.
        resamples: bootstrap resamples.
        seed: of the resampling.
        level: coverage of the interval.
    """
    _, label = np.unique(clusters, return_inverse=True)
    count = np.bincount(label).astype(np.float64)
    total = np.bincount(label, weights=values.astype(np.float64))
    drawn = np.random.default_rng(seed).integers(len(count), size=(resamples, len(count)))
    means = total[drawn].sum(1) / count[drawn].sum(1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return {
        "mean": float(np.mean(values)),
        "low": float(low),
        "high": float(high),
        "n": len(values),
    }


def bootstrap_ratio(
    numerator: np.ndarray[Any, Any],
    denominator: np.ndarray[Any, Any],
    clusters: np.ndarray[Any, Any],
    *,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Figure:
    """Ratio of two means over the same samples, e.g. of accuracies, resampling whole clusters.

    Args:
        numerator: [n] measurements.
        denominator: [n] measurements of the same samples; not all zero.
        clusters: [n] labels (episodes); all values of a label move together.
        resamples: bootstrap resamples; those whose denominator is zero are left out.
        seed: of the resampling.
        level: coverage of the interval.
    """
    _, label = np.unique(clusters, return_inverse=True)
    above = np.bincount(label, weights=numerator.astype(np.float64))
    below = np.bincount(label, weights=denominator.astype(np.float64))
    drawn = np.random.default_rng(seed).integers(len(above), size=(resamples, len(above)))
    sums = above[drawn].sum(1), below[drawn].sum(1)
    ratios = sums[0][sums[1] != 0] / sums[1][sums[1] != 0]
    low, high = np.quantile(ratios, [(1 - level) / 2, (1 + level) / 2])
    return {
        "mean": float(above.sum() / below.sum()),
        "low": float(low),
        "high": float(high),
        "n": len(numerator),
    }


def constant(value: float, n: int) -> Figure:
    """A figure known without sampling error."""
    return {"mean": value, "low": value, "high": value, "n": n}


def chance_mrr(candidates: int) -> float:
    """Mean reciprocal rank of a random order of ``candidates``: H(n) / n."""
    return float((1.0 / np.arange(1, candidates + 1)).sum() / candidates)

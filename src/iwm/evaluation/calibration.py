"""What the served numbers mean: confidence, uncertainty and surprise, fitted on held-out data.

* **uncertainty**: the error head's expectation, mapped through a rising table to the
  distance from the true latent that such predictions had;
* **confidence** (``mrr`` in responses): the uncertainty, mapped through a falling table to
  the reciprocal rank that such predictions reached;
* **surprise**: the distance between predicted and actual CLS, scaled so that its 95th
  percentile is 2.0 (clients compare with 2.0 and 3.0).

Isotonic regression (pool adjacent violators): nothing is assumed but the order.
"""

from __future__ import annotations

from typing import Any

import numpy as np

SURPRISE_THRESHOLD = 2.0
_KNOTS = 64
Array = np.ndarray[Any, Any]


def isotonic_table(x: Array, y: Array, *, increasing: bool) -> tuple[list[float], list[float]]:
    """A monotone table through the means of ``y`` given ``x``.

    Returns:
        Knots (rising, at most 64) and values, for linear interpolation held flat at both ends.
    """
    from scipy.optimize import isotonic_regression

    # Averages of equal shares of the data, so that knots carry comparable evidence; shares
    # whose x is the same are one knot.
    parts = np.array_split(np.argsort(x, kind="stable"), min(_KNOTS, len(x)))
    at, knot = np.unique([x[part].mean() for part in parts], return_inverse=True)
    weight = np.bincount(knot, weights=[len(part) for part in parts])
    level = np.bincount(knot, weights=[y[part].sum() for part in parts]) / weight
    fitted = isotonic_regression(level, weights=weight, increasing=increasing).x
    return at.tolist(), fitted.tolist()


def apply_table(x: Array, knots: list[float], values: list[float]) -> Array:
    """Linear interpolation, flat beyond the ends."""
    return np.interp(x, knots, values)


def surprise_scale(distance: Array) -> float:
    """Factor that puts the 95th percentile of distances at the threshold 2.0."""
    return SURPRISE_THRESHOLD / max(float(np.quantile(distance, 0.95)), 1e-12)


def calibrate(predicted_error: Array, distance: Array, reciprocal: Array) -> dict[str, Any]:
    """Tables for one way of predicting (CLS-only, or with patches), from held-out data.

    Args:
        predicted_error: [n] what the error head expected: exp(log_error).
        distance: [n] Euclidean distance between predicted and actual CLS.
        reciprocal: [n] reciprocal rank reached.

    Returns:
        ``surprise_scale``, ``surprise_threshold``; ``error`` {predicted, measured}: from
        exp(log_error) to the expected distance (the uncertainty); ``confidence`` {error, mrr}:
        from that uncertainty to the expected reciprocal rank.
    """
    x, measured = isotonic_table(predicted_error, distance, increasing=True)
    uncertainty = apply_table(predicted_error, x, measured)
    at, mrr = isotonic_table(uncertainty, reciprocal, increasing=False)
    return {
        "surprise_scale": surprise_scale(distance),
        "surprise_threshold": SURPRISE_THRESHOLD,
        "error": {"predicted": x, "measured": measured},
        "confidence": {"error": at, "mrr": mrr},
    }


def calibration_curve(expected: Array, actual: Array, bins: int = 10) -> dict[str, Any]:
    """Mean expected against mean actual in bins of equal counts, and their mean gap.

    Returns:
        ``expected`` and ``actual`` lists, and ``ece``: the mean absolute gap.
    """
    order = np.argsort(expected, kind="stable")
    parts = [part for part in np.array_split(order, bins) if len(part)]
    means = [(float(expected[part].mean()), float(actual[part].mean())) for part in parts]
    gap = sum(len(part) * abs(a - b) for part, (a, b) in zip(parts, means, strict=True))
    return {
        "expected": [a for a, _ in means],
        "actual": [b for _, b in means],
        "ece": gap / len(expected),
    }

"""Surprise: how far what happened lies from what was predicted, on a scale that means something.

Four measures of one transition (state, claimed action, what came):

* ``distance``: Euclidean, predicted to actual CLS;
* ``relative``: that, over the distance the model expected (its error head, calibrated): a
  model that knows where it is unsure is not surprised there, so the scale holds in scenarios
  that are harder or easier than those it was fitted on;
* ``action``: -log p(claimed action | what came), from the distances of what came to the
  predictions under every action of the vocabulary (a softmax whose temperature is fitted by
  maximum likelihood). It sees that another action explains the outcome better, however small
  the difference looks; it cannot see what no action explains;
* ``combined``: the sum of the last two, each in units of its own held-out 95th percentile.

Each is scaled so that its 95th percentile on held-out play is 2.0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from iwm.evaluation.calibration import SURPRISE_THRESHOLD, apply_table
from iwm.evaluation.statistics import Figure

if TYPE_CHECKING:
    from iwm.evaluation.predictions import Predicted

Array = np.ndarray[Any, Any]

KINDS = ("distance", "relative", "action", "combined")
_TEMPERATURES = np.geomspace(0.02, 5.0, 41)


@dataclass(frozen=True)
class Transitions:
    """Scored transitions of states that share a vocabulary of V actions.

    ``by_action`` [M, V]: distance of what came to the prediction under each action;
    ``expected`` [M, V]: the error that the model expected, uncalibrated: exp(log_error);
    ``claimed`` int64 [M]; ``episode`` int64 [M]; ``name`` of the recording.
    """

    name: str
    by_action: Array
    expected: Array
    claimed: Array
    episode: Array

    @property
    def distance(self) -> Array:
        """[M], under the claimed action."""
        return self.by_action[np.arange(len(self.claimed)), self.claimed]

    @property
    def own_expectation(self) -> Array:
        """[M], under the claimed action."""
        return self.expected[np.arange(len(self.claimed)), self.claimed]

    def where(self, rows: Array) -> Transitions:
        """Some of them; ``rows`` is boolean or places."""
        return Transitions(
            self.name,
            self.by_action[rows],
            self.expected[rows],
            self.claimed[rows],
            self.episode[rows],
        )


def transitions(
    name: str, predicted: Predicted, actual: Tensor, claimed: Array, episode: Array
) -> Transitions:
    """Score what came.

    Args:
        name: of the recording.
        predicted: under every action, [M, V, D].
        actual: [M, D].
        claimed: int64 [M], the action that is said to have been taken.
        episode: int64 [M].
    """
    return Transitions(
        name,
        (predicted.z_cls - actual.unsqueeze(1)).norm(dim=-1).numpy(),
        predicted.error.numpy(),
        claimed,
        episode,
    )


@dataclass(frozen=True)
class Surprise:
    """A fitted scale for every measure.

    Args:
        table: knots and values from the model's expectation to the expected distance.
        temperature: of the softmax over actions, in units of the expected distance.
        scale: {kind: factor}; ``combined`` sums the other two after their own factors.
    """

    table: tuple[list[float], list[float]]
    temperature: float
    scale: dict[str, float]

    def raw(self, kind: str, seen: Transitions) -> Array:
        """[M], before scaling."""
        if kind == "distance":
            return seen.distance
        if kind == "relative":
            return seen.distance / apply_table(seen.own_expectation, *self.table)
        if kind == "action":
            return -_log_posterior(seen, self.table, self.temperature)
        return self("relative", seen) + self("action", seen)

    def __call__(self, kind: str, seen: Transitions) -> Array:
        """[M], scaled: 2.0 is the 95th percentile of ordinary play."""
        return self.scale[kind] * self.raw(kind, seen)


def fit(groups: Sequence[Transitions], table: tuple[list[float], list[float]]) -> Surprise:
    """Fit temperature and scales on held-out transitions.

    Recordings weigh alike, however long each was played: the next data will be mixed
    otherwise.

    Args:
        groups: ordinary transitions, by recording.
        table: the calibrated expected distance; see :class:`Surprise`.
    """
    weights = balanced(groups)
    likelihood = [
        sum(
            float((weight * _log_posterior(seen, table, t)).sum())
            for seen, weight in zip(groups, weights, strict=True)
        )
        for t in _TEMPERATURES
    ]
    surprise = Surprise(table, float(_TEMPERATURES[int(np.argmax(likelihood))]), {})
    for kind in KINDS:  # `combined` stands last: it needs the scales of the others
        values = np.concatenate([surprise.raw(kind, seen) for seen in groups])
        p95 = weighted_quantile(values, np.concatenate(weights), 0.95)
        surprise.scale[kind] = SURPRISE_THRESHOLD / max(p95, 1e-12)
    return surprise


def balanced(groups: Sequence[Transitions]) -> list[Array]:
    """Weights that give every recording the same share."""
    names = [seen.name for seen in groups]
    size = {name: sum(len(g.claimed) for g in groups if g.name == name) for name in names}
    return [np.full(len(seen.claimed), 1 / size[seen.name]) for seen in groups]


def _log_posterior(
    seen: Transitions, table: tuple[list[float], list[float]], temperature: float
) -> Array:
    """log p(claimed | what came), [M]: softmax over actions of -(distance / unit)^2 / 2.

    The unit is the temperature times the distance that was expected on average over the
    actions: one for all of them, so that no action gains from being badly known.
    """
    unit = temperature * apply_table(seen.expected, *table).mean(1, keepdims=True)
    logit = -0.5 * (seen.by_action / unit) ** 2
    top = logit.max(1, keepdims=True)
    normaliser = top[:, 0] + np.log(np.exp(logit - top).sum(1))
    own: Array = logit[np.arange(len(logit)), seen.claimed] - normaliser
    return own


def weighted_quantile(values: Array, weights: Array, level: float) -> float:
    """The smallest value at or below which ``level`` of the weight lies."""
    order = np.argsort(values, kind="stable")
    share = np.cumsum(weights[order])
    place = np.searchsorted(share, level * share[-1] * (1 - 1e-12))
    return float(values[order][min(int(place), len(values) - 1)])


def quantile_figure(
    values: Array,
    weights: Array,
    clusters: Array,
    *,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> Figure:
    """A weighted quantile with an interval from resampling whole clusters."""
    order = np.argsort(values, kind="stable")
    ordered, weight = values[order], weights[order]
    _, label = np.unique(clusters[order], return_inverse=True)
    count = int(label.max()) + 1
    generator = np.random.default_rng(seed)
    found = []
    for _ in range(resamples):
        drawn = np.bincount(generator.integers(count, size=count), minlength=count)
        share = np.cumsum(weight * drawn[label])
        place = int(np.searchsorted(share, level * share[-1]))
        found.append(ordered[min(place, len(ordered) - 1)])
    low, high = np.quantile(found, [0.025, 0.975])
    return {
        "mean": weighted_quantile(values, weights, level),
        "low": float(low),
        "high": float(high),
        "n": len(values),
    }


def auroc(
    normal: Array,
    normal_episode: Array,
    odd: Array,
    odd_episode: Array,
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> Figure:
    """Area under the ROC curve with an interval from resampling whole episodes.

    The probability that an anomaly scores above an ordinary transition; ties count half.

    Args:
        normal: [m] scores of ordinary transitions.
        normal_episode: [m].
        odd: [n] scores of anomalies.
        odd_episode: [n]; an episode in both groups moves both.
        resamples: of the episodes.
        seed: of the resampling.
    """
    labels = np.unique(np.concatenate([normal_episode, odd_episode]))
    own, others = np.searchsorted(labels, odd_episode), np.searchsorted(labels, normal_episode)
    count = len(labels)
    # Pairs won between every two episodes: a resample is then a small product.
    wins = np.zeros((count, count))
    for label in np.unique(others):
        rivals = np.sort(normal[others == label])
        won = np.searchsorted(rivals, odd, "left") + np.searchsorted(rivals, odd, "right")
        wins[:, label] = np.bincount(own, weights=won / 2, minlength=count)
    odd_count = np.bincount(own, minlength=count).astype(float)
    normal_count = np.bincount(others, minlength=count).astype(float)
    generator = np.random.default_rng(seed)
    found = []
    for _ in range(resamples):
        drawn = np.bincount(generator.integers(count, size=count), minlength=count).astype(float)
        pairs = (drawn @ odd_count) * (drawn @ normal_count)
        if pairs:
            found.append(float(drawn @ wins @ drawn) / pairs)
    mean = float(wins.sum() / (len(odd) * len(normal)))
    low, high = np.quantile(found or [mean], [0.025, 0.975])
    return {"mean": mean, "low": float(low), "high": float(high), "n": len(odd)}


def roc_curve(normal: Array, odd: Array, points: int = 101) -> dict[str, list[float]]:
    """False alarms against detections, for drawing."""
    alarms = np.linspace(0, 1, points)
    thresholds = np.quantile(normal, 1 - alarms)
    thresholds[-1] = -np.inf
    detected = (odd[None, :] >= thresholds[:, None]).mean(1)
    return {"false_alarms": alarms.tolist(), "detected": detected.tolist()}

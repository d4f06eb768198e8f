"""The evaluation of an action-conditioned world model: figures and calibration.

Everything is measured on episodes that nothing was trained on. What is only measured
(rollouts, retrieval, collapse) is so on all of them, ``test`` and ``val`` play and the
counterfactual sets. What is fitted (surprise, confidence, uncertainty) is fitted on ``val``
play and a share of each set's episodes, and measured on ``test`` play and the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from iwm.data.branches import BranchSet
from iwm.evaluation.anomalies import Case, merge, of_branches, of_play
from iwm.evaluation.calibration import (
    SURPRISE_THRESHOLD,
    apply_table,
    calibration_curve,
    isotonic_table,
)
from iwm.evaluation.collapse import collapse_figures
from iwm.evaluation.config import EvaluateConfig
from iwm.evaluation.play import ActionModel, Branches, Play, encode_branches
from iwm.evaluation.predictions import Given, Predicted, predict, predict_every
from iwm.evaluation.retrieval import distances
from iwm.evaluation.rollout import Context, Rollouts, rollout_figures, rollouts
from iwm.evaluation.statistics import Figure, bootstrap_mean, chance_mrr, constant
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
from iwm.evaluation.temporal import Temporal, temporal_figures, temporal_retrieval

Array = np.ndarray[Any, Any]

GIVEN: tuple[Given, ...] = ("single", "history", "with_patches")
RANKED: dict[Given, str] = {
    "single": "cls_only",
    "history": "cls_only_history",
    "with_patches": "with_patches",
}
"""What counterfactual figures are called: the latent that ``/predict`` returns for each."""
ROLLOUTS: dict[str, Context] = {"rollout": "history", "rollout_single": "single"}


@dataclass(frozen=True)
class Outcome:
    """``metrics`` for the report, ``calibration`` for serving, and what the pictures need."""

    metrics: dict[str, Any]
    calibration: dict[str, Any]
    held: list[Play]
    rollouts: dict[str, Rollouts]
    temporal: Temporal
    branches: list[Branches]
    curves: dict[str, dict[str, Any]]
    roc: dict[str, dict[str, list[float]]]


@dataclass
class _Scored:
    """Transitions of one split for one way of predicting."""

    ordinary: list[Transitions] = field(default_factory=list)
    cases: list[Case] = field(default_factory=list)
    # Expected error (uncalibrated), reciprocal rank among the outcomes, episode: [n] each.
    ranked: list[tuple[Array, Array, Array]] = field(default_factory=list)

    def all_ranked(self) -> tuple[Array, Array, Array]:
        """The three columns of ``ranked``."""
        errors, reciprocal, episode = zip(*self.ranked, strict=True)
        return np.concatenate(errors), np.concatenate(reciprocal), np.concatenate(episode)


def evaluate(
    model: ActionModel,
    test: list[Play],
    val: list[Play],
    sets: Sequence[BranchSet],
    config: EvaluateConfig,
) -> Outcome:
    """Measure a model on held-out play and ``sets``; see the module's text for what on what.

    Raises:
        ModelError: an action that the model does not know.
        DataError: no episode is long enough.
    """
    held = [*test, *val]
    options, boot = config.action, {"resamples": config.bootstrap, "seed": config.seed}
    rolled = {
        name: rollouts(
            model,
            held,
            horizon=options.horizon,
            context=context,
            windows=options.windows,
            seed=config.seed,
        )
        for name, context in ROLLOUTS.items()
    }
    metrics: dict[str, Any] = {
        name: rollout_figures(found, **boot) for name, found in rolled.items()
    }
    temporal = {
        given: temporal_retrieval(
            model, held, given=given, bank=config.bank, windows=options.windows, seed=config.seed
        )
        for given in GIVEN
    }
    metrics["temporal"] = {
        given: temporal_figures(found, **boot) for given, found in temporal.items()
    }
    branches = [encode_branches(model, source, i) for i, source in enumerate(sets)]
    metrics["counterfactual"] = {
        found.source.name: {
            RANKED[given]: _counterfactual(model, found, given, boot) for given in GIVEN
        }
        for found in branches
    }
    measured: dict[str, Any] = {"surprise": {}, "calibration": {}}
    tables: dict[str, Any] = {}
    curves: dict[str, dict[str, Any]] = {}
    roc: dict[str, dict[str, list[float]]] = {}
    for given in GIVEN:
        fitting, held_out = _score(model, val, test, branches, given, config)
        surprise, tables[given] = _calibrate(fitting)
        figures, found = _calibration_figures(held_out, tables[given], boot)
        measured["calibration"][given] = figures
        measured["surprise"][given] = _surprise_figures(held_out, surprise, options.surprise, boot)
        if given == "single":
            curves = found
            roc = _roc(held_out, surprise, options.surprise)
    metrics |= measured
    metrics["collapse"] = collapse_figures(
        torch.cat([play.z_cls for play in held]),
        np.concatenate([play.episode for play in held]),
        config.seed,
    )
    metrics["data"] = {
        "frames": sum(len(play) for play in held),
        "episodes": len(np.unique(np.concatenate([play.episode for play in held]))),
        "branched_states": sum(len(source) for source in sets),
    }
    # A client that holds one z_cls is the usual one: its tables stand at the top.
    calibration = {**tables.pop("single"), **tables}
    return Outcome(metrics, calibration, held, rolled, temporal["single"], branches, curves, roc)


def _counterfactual(
    model: ActionModel, found: Branches, given: Given, boot: dict[str, int]
) -> dict[str, Figure]:
    """The true outcome of each action ranked among the outcomes of all, from the same state."""
    states = found.states
    everyone = np.ones(len(states), dtype=bool)
    predicted = predict_every(model, states, given)
    nothing = predict(model, states, torch.zeros_like(states.actions[:, 0]), given)
    arms = {
        "model": predicted.z_cls,
        "copy_last": states.z_cls.unsqueeze(1).expand_as(predicted.z_cls),
        "no_action": nothing.z_cls.unsqueeze(1).expand_as(predicted.z_cls),
        # What the model says of the next action in the vocabulary.
        "wrong_action": predicted.z_cls.roll(1, 1),
    }
    reciprocal = {}
    for arm, latents in arms.items():
        _, reciprocal[arm], episode = _ranks_of_outcomes(
            found, Predicted(latents, predicted.error), everyone
        )
    counts = found.valid.sum(1)
    chance = np.repeat([chance_mrr(int(count)) for count in counts], counts)

    def figure(values: Array) -> Figure:
        return bootstrap_mean(values, episode, **boot)

    return {
        **{arm: figure(values) for arm, values in reciprocal.items()},
        "margin_copy": figure(reciprocal["model"] - reciprocal["copy_last"]),
        "hit_at_1": figure((reciprocal["model"] == 1).astype(float)),
        "chance": figure(chance),
        "chance_hit_at_1": figure(np.repeat(1 / counts, counts)),
    }


def _score(
    model: ActionModel,
    val: list[Play],
    test: list[Play],
    branches: list[Branches],
    given: Given,
    config: EvaluateConfig,
) -> tuple[_Scored, _Scored]:
    """What calibration is fitted on, and what it is measured on: no episode in both."""
    fitting, held_out = _Scored(), _Scored()
    for part, parts in ((fitting, val), (held_out, test)):
        for play in parts:
            if len(play.windows(model.history - 1, 1)):
                ordinary, cases = of_play(model, play, given, config.augment, config.seed)
                part.ordinary.append(ordinary)
                part.cases += cases
    for found in branches:
        predicted = predict_every(model, found.states, given)
        chosen = _share_of_episodes(found.states.episode, config.action.fit_share, config.seed)
        for part, rows in ((fitting, chosen), (held_out, ~chosen)):
            if rows.any():
                ordinary, cases = of_branches(found, predicted, rows)
                part.ordinary.append(ordinary)
                part.cases += cases
                part.ranked.append(_ranks_of_outcomes(found, predicted, rows))
    if not branches:  # no simulator was at hand: what is ranked is the next frame
        for part, parts in ((fitting, val), (held_out, test)):
            found_ = temporal_retrieval(
                model,
                parts,
                given=given,
                bank=config.bank,
                windows=config.action.windows,
                seed=config.seed,
            )
            part.ranked.append((found_.predicted_error, found_.reciprocal["model"], found_.episode))
    return fitting, held_out


def _share_of_episodes(episode: Array, share: float, seed: int) -> Array:
    """bool [N]: a random share of the episodes, at least one and never all but of one."""
    labels = np.random.default_rng(seed).permutation(np.unique(episode))
    count = min(max(1, round(share * len(labels))), max(1, len(labels) - 1))
    return np.isin(episode, labels[:count])


def _ranks_of_outcomes(
    found: Branches, predicted: Predicted, rows: Array
) -> tuple[Array, Array, Array]:
    """Expected error, reciprocal rank among the true outcomes and episode, per prediction."""
    errors, reciprocal, episodes = [], [], []
    for state in np.flatnonzero(rows):
        there = np.flatnonzero(found.valid[state])
        away: Tensor = distances(predicted.z_cls[state, there], found.outcome[state, there])
        true = away.diagonal().unsqueeze(1)
        rank = 1 + (away < true).sum(1) + 0.5 * ((away == true).sum(1) - 1)
        errors.append(predicted.error[state, there].numpy())
        reciprocal.append((1 / rank).numpy())
        episodes.append(np.full(len(there), found.states.episode[state]))
    return np.concatenate(errors), np.concatenate(reciprocal), np.concatenate(episodes)


def _calibrate(fitting: _Scored) -> tuple[Surprise, dict[str, Any]]:
    """Tables for one way of predicting, as ``calibration.json`` holds them."""
    told = np.concatenate([seen.own_expectation for seen in fitting.ordinary])
    actual = np.concatenate([seen.distance for seen in fitting.ordinary])
    knots, measured = isotonic_table(told, actual, increasing=True)
    surprise = fit(fitting.ordinary, (knots, measured))
    errors, reciprocal, _ = fitting.all_ranked()
    uncertainty = apply_table(errors, knots, measured)
    at, mrr = isotonic_table(uncertainty, reciprocal, increasing=False)
    return surprise, {
        "surprise_scale": surprise.scale["distance"],
        "surprise_threshold": SURPRISE_THRESHOLD,
        "error": {"predicted": knots, "measured": measured},
        "confidence": {"error": at, "mrr": mrr},
        "surprise": {"temperature": surprise.temperature, "scale": surprise.scale},
    }


def _calibration_figures(
    held_out: _Scored, tables: dict[str, Any], boot: dict[str, int]
) -> tuple[dict[str, Figure], dict[str, Any]]:
    """How confidence and uncertainty hold on other episodes, and the curves to draw."""
    told = np.concatenate([seen.own_expectation for seen in held_out.ordinary])
    actual = np.concatenate([seen.distance for seen in held_out.ordinary])
    error, confidence = tables["error"], tables["confidence"]

    def uncertain(values: Array) -> Array:
        return apply_table(values, error["predicted"], error["measured"])

    errors, reciprocal, episode = held_out.all_ranked()
    expected = apply_table(uncertain(errors), confidence["error"], confidence["mrr"])
    curves = {
        "Confidence (reciprocal rank)": calibration_curve(expected, reciprocal),
        "Uncertainty (distance)": calibration_curve(uncertain(told), actual),
    }
    gaps = [curve["ece"] for curve in curves.values()]
    return {
        "confidence_gap": constant(gaps[0], len(expected)),
        "uncertainty_gap": constant(gaps[1], len(told)),
        "confidence": bootstrap_mean(expected, episode, **boot),
        "reciprocal_rank": bootstrap_mean(reciprocal, episode, **boot),
        "distance": bootstrap_mean(
            actual, np.concatenate([seen.episode for seen in held_out.ordinary]), **boot
        ),
    }, curves


def _surprise_figures(
    held_out: _Scored, surprise: Surprise, measure: str, boot: dict[str, int]
) -> dict[str, Any]:
    """95th percentile of ordinary play and AUROC of every anomaly, for every measure.

    The chosen ``measure`` stands at the top, all of them under ``measures``.
    """
    weights = np.concatenate(balanced(held_out.ordinary))
    episode = np.concatenate([seen.episode for seen in held_out.ordinary])
    found: dict[str, Any] = {}
    for kind in KINDS:
        values = [surprise(kind, seen) for seen in held_out.ordinary]
        scores = np.concatenate(values)
        names = sorted({seen.name for seen in held_out.ordinary})
        parts = {
            name: [i for i, seen in enumerate(held_out.ordinary) if seen.name == name]
            for name in names
        }
        found[kind] = {
            "p95": quantile_figure(scores, weights, episode, **boot),
            "p95_of": {
                name: quantile_figure(
                    joined := np.concatenate([values[i] for i in places]),
                    np.ones(len(joined)),
                    np.concatenate([held_out.ordinary[i].episode for i in places]),
                    **boot,
                )
                for name, places in parts.items()
            },
            "above_threshold": bootstrap_mean(
                (scores > SURPRISE_THRESHOLD).astype(float), episode, **boot
            ),
            "auroc": {
                anomaly: _auroc(cases, surprise, kind, boot)
                for anomaly, cases in merge(held_out.cases).items()
            },
        }
    visible = {
        f"{anomaly}_share": constant(
            float(np.mean([case.share for case in cases])),
            sum(len(case.odd.claimed) for case in cases),
        )
        for anomaly, cases in merge(held_out.cases).items()
    }
    return {**found[measure], **visible, "measures": found}


def _auroc(cases: list[Case], surprise: Surprise, kind: str, boot: dict[str, int]) -> Figure:
    def scores(seen: list[Transitions]) -> tuple[Array, Array]:
        values = [surprise(kind, one) for one in seen]
        return np.concatenate(values), np.concatenate([one.episode for one in seen])

    normal, normal_episode = scores([case.normal for case in cases])
    odd, odd_episode = scores([case.odd for case in cases])
    return auroc(normal, normal_episode, odd, odd_episode, **boot)


def _roc(held_out: _Scored, surprise: Surprise, measure: str) -> dict[str, Any]:
    """Curves of every anomaly under the chosen measure."""
    return {
        anomaly: roc_curve(
            np.concatenate([surprise(measure, case.normal) for case in cases]),
            np.concatenate([surprise(measure, case.odd) for case in cases]),
        )
        for anomaly, cases in merge(held_out.cases).items()
    }

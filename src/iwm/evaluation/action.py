"""The evaluation of an action-conditioned world model: figures and calibration.

Everything is measured on episodes that nothing was trained on: held-out play and the
counterfactual sets. What is fitted (surprise, confidence, uncertainty) is fitted on some of
them and measured on others, see :mod:`iwm.evaluation.crossfit`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from iwm.data.branches import BranchSet
from iwm.evaluation.anomalies import of_branches, of_play
from iwm.evaluation.collapse import collapse_figures
from iwm.evaluation.config import EvaluateConfig
from iwm.evaluation.counterfactual import counterfactual, patch_counterfactual, per_prediction
from iwm.evaluation.crossfit import (
    Scored,
    calibrate,
    calibration_figures,
    in_turns,
    roc_curves,
    surprise_figures,
)
from iwm.evaluation.play import ActionModel, Branches, Play, encode_branches
from iwm.evaluation.predictions import Given, Predicted, predict_every
from iwm.evaluation.rollout import Context, Rollouts, rollout_figures, rollouts
from iwm.evaluation.temporal import Temporal, temporal_figures, temporal_retrieval

Array = np.ndarray[Any, Any]

GIVEN: tuple[Given, ...] = ("single", "history")
RANKED: dict[Given, str] = {"single": "cls_only", "history": "cls_only_history"}
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


def evaluate(
    model: ActionModel,
    held: list[Play],
    sets: Sequence[BranchSet],
    config: EvaluateConfig,
) -> Outcome:
    """Measure a model on held-out play and on ``sets``, and calibrate it.

    Raises:
        ModelError: an action that the model does not know.
        DataError: no episode is long enough.
    """
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
    tried = {
        given: [predict_every(model, found.states, given) for found in branches] for given in GIVEN
    }
    metrics["counterfactual"] = {
        found.source.name: {
            **{
                RANKED[given]: counterfactual(model, found, given, tried[given][i], **boot)
                for given in GIVEN
            },
            **patch_counterfactual(model, found, **boot),
        }
        for i, found in enumerate(branches)
    }
    measured: dict[str, Any] = {"surprise": {}, "calibration": {}}
    tables: dict[str, Any] = {}
    curves: dict[str, dict[str, Any]] = {}
    roc: dict[str, dict[str, list[float]]] = {}
    for given in GIVEN:
        scored = _score(model, held, list(zip(branches, tried[given], strict=True)), given, config)
        if not branches:  # no simulator was at hand: what is ranked is the next frame
            one = temporal[given]
            scored.ranked = [(one.predicted_error, one.reciprocal["model"], one.episode)]
        turns = in_turns(scored, options.folds, config.seed)
        measured["calibration"][given], drawn = calibration_figures(turns, boot)
        measured["surprise"][given] = surprise_figures(turns, options.surprise, boot)
        tables[given] = calibrate(scored, Scored()).tables
        if given == "single":
            curves, roc = drawn, roc_curves(turns, options.surprise)
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


def _score(
    model: ActionModel,
    held: list[Play],
    branches: list[tuple[Branches, Predicted]],
    given: Given,
    config: EvaluateConfig,
) -> Scored:
    """All transitions of held-out play and branched states, ordinary and staged."""
    scored = Scored()
    for play in held:
        if len(play.windows(model.history - 1, 1)):
            ordinary, cases = of_play(model, play, given, config.augment, config.seed)
            scored.ordinary.append(ordinary)
            scored.cases += cases
    for found, predicted in branches:
        ordinary, cases = of_branches(found, predicted)
        scored.ordinary.append(ordinary)
        scored.cases += cases
        scored.ranked.append(per_prediction(found, predicted))
    return scored

"""Pictures of an action-conditioned model's evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from iwm.evaluation.action import ROLLOUTS, Outcome
from iwm.evaluation.pictures import calibration_plot, error_curves, rank_histogram, roc_plot, strips
from iwm.evaluation.play import ActionModel, Branches, Play
from iwm.evaluation.predictions import predict_every
from iwm.evaluation.retrieval import distances
from iwm.evaluation.rollout import ARMS

Array = np.ndarray[Any, Any]
_ROWS = 8


def draw(model: ActionModel, outcome: Outcome, bank: int, folder: Path) -> None:
    """Every picture of an evaluation into ``folder``.

    Args:
        model: names the actions, and predicts the branched states once more.
        outcome: of the evaluation.
        bank: size of a temporal bank.
        folder: existing.
    """
    titles = {"rollout": "With earlier frames", "rollout_single": "From one latent"}
    panels = {titles[name]: outcome.metrics[name] for name in ROLLOUTS}
    error_curves(panels, ARMS, folder / "rollout.png")
    calibration_plot(outcome.curves, folder / "calibration.png")
    roc_plot(outcome.roc, folder / "roc.png")
    rank_histogram(outcome.temporal.reciprocal, bank, folder / "ranks.png")
    _neighbours(model, outcome, folder / "neighbours.png")
    _rollouts(outcome, folder / "rollouts.png")
    if outcome.branches:
        _outcomes(model, outcome.branches, folder / "outcomes.png")


def _neighbours(model: ActionModel, outcome: Outcome, path: Path) -> None:
    """Present frame, the frame of the episode nearest to the prediction, the true next one."""
    found = outcome.temporal
    # Not only the frames that are easy: drawn at random, from every recording.
    order = np.random.default_rng(0).permutation(len(found.start))
    chosen = _spread(found.part[order], _ROWS)
    rows, labels = [], []
    for place in order[chosen]:
        play, start = outcome.held[found.part[place]], int(found.start[place])
        rows.append([_frame(play, i) for i in (start, int(found.nearest[place]), start + 1)])
        labels.append(f"{play.name}\n{_name(model, play, start)}")
    strips(rows, ("present", "nearest to prediction", "true next"), path, labels)


def _rollouts(outcome: Outcome, path: Path) -> None:
    """Pairs of rows: what came, and of the same episode what is nearest to each prediction."""
    found = outcome.rollouts["rollout"]
    horizon = found.latents.shape[1]
    rows, labels = [], []
    for which in range(0, len(found.shown), max(1, len(found.shown) // 4))[:4]:
        number, start = found.shown[which]
        play = outcome.held[number]
        there = np.flatnonzero(play.episode == play.episode[start])
        bank = play.z_cls[torch.from_numpy(there)]
        nearest = there[distances(found.latents[which], bank).argmin(1).numpy()]
        came = range(start, start + horizon + 1)
        rows.append([_frame(play, i) for i in came])
        rows.append([_frame(play, start), *(_frame(play, int(i)) for i in nearest)])
        labels += [f"{play.name}\nwhat came", "predicted"]
    actions = ["present", *(f"k = {step}" for step in range(1, horizon + 1))]
    strips(rows, actions, path, labels)


def _outcomes(model: ActionModel, branches: list[Branches], path: Path) -> None:
    """Branched states: present, the outcome nearest to the prediction, the true outcome."""
    rows, labels = [], []
    generator = np.random.default_rng(0)
    each = -(-_ROWS // len(branches))
    for found in branches:
        source, states = found.source, found.states
        nearest = _nearest_outcome(model, found)
        for state in generator.permutation(len(states))[:each]:
            action = int(generator.choice(np.flatnonzero(found.valid[state])))
            names = source.vocabulary
            guess = int(nearest[state, action])
            pictures = source.frames[state, -1], source.outcomes[state, guess]
            rows.append([*pictures, source.outcomes[state, action]])
            verdict = "found" if guess == action else f"took it for {names[guess]}"
            labels.append(f"{source.name}\n{names[action]}\n{verdict}")
    strips(rows, ("present", "nearest to prediction", "true outcome"), path, labels)


def _nearest_outcome(model: ActionModel, found: Branches) -> Array:
    """[N, A]: which true outcome lies nearest to the prediction under each action."""
    predicted = predict_every(model, found.states, "single").z_cls
    away = torch.stack([distances(p, o) for p, o in zip(predicted, found.outcome, strict=True)])
    away[~torch.from_numpy(found.valid)[:, None, :].expand_as(away)] = float("inf")
    nearest: Array = away.argmin(-1).numpy()
    return nearest


def _spread(part: Array, count: int) -> Array:
    """Places of ``count`` entries, in turn from every part."""
    turn = np.zeros(len(part), np.int64)
    for label in np.unique(part):
        own = part == label
        turn[own] = np.arange(int(own.sum()))
    return np.sort(np.lexsort((np.arange(len(part)), turn))[:count])


def _frame(play: Play, place: int) -> Array:
    picture: Array = play.images[place].permute(1, 2, 0).numpy()
    return picture


def _name(model: ActionModel, play: Play, place: int) -> str:
    if play.continuous is not None:
        return "(" + ", ".join(f"{value:.2g}" for value in play.continuous[place].tolist()) + ")"
    return model.vocabulary[int(play.action[place])]

"""Temporal retrieval: does the prediction pick the true next frame of its own episode?

The true next frame is ranked by distance among 255 others of the same episode (all of them
where the episode is shorter). Copying the present frame is a strong guess: neighbours in
time look alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from iwm.evaluation.play import ActionModel, Play, require, states_of
from iwm.evaluation.predictions import Given, claimed_vectors, predict
from iwm.evaluation.retrieval import distances
from iwm.evaluation.statistics import Figure, bootstrap_mean, chance_mrr

Array = np.ndarray[Any, Any]
ARMS = ("model", "copy_last", "no_action")


@dataclass(frozen=True)
class Temporal:
    """``reciprocal`` {arm: [M]}; ``predicted_error`` [M]: what the model expected;
    ``chance`` [M], of each bank's size; ``episode`` [M];
    ``nearest`` [M] and ``start`` [M]: frames of ``part`` [M], the recording's place.
    """

    reciprocal: dict[str, Array]
    predicted_error: Array
    chance: Array
    episode: Array
    nearest: Array
    start: Array
    part: Array


@torch.no_grad()
def temporal_retrieval(
    model: ActionModel, parts: list[Play], *, given: Given, bank: int, windows: int, seed: int
) -> Temporal:
    """Rank the true next frame for frames of held-out play.

    Args:
        model: in eval mode.
        parts: held-out play.
        given: what the model is given.
        bank: size of a full bank, the truth included.
        windows: at most this many predictions over all recordings.
        seed: of the choice of frames and banks.
    """
    generator = np.random.default_rng(seed)
    every = require(parts, model.history - 1, 1, "measured")
    total = sum(len(at) for at in every)
    reciprocal: dict[str, list[float]] = {arm: [] for arm in ARMS}
    chance: list[float] = []
    columns: dict[str, list[Array]] = {name: [] for name in ("episode", "start", "part", "error")}
    nearest: list[int] = []
    for number, (play, at) in enumerate(zip(parts, every, strict=True)):
        at = np.sort(generator.permutation(at)[: -(-windows * len(at) // total)])
        if not len(at):
            continue
        columns["episode"].append(play.episode[at])
        columns["start"].append(at)
        columns["part"].append(np.full(len(at), number))
        states = states_of(model, play, at)
        true = claimed_vectors(states)
        told = predict(model, states, true, given)
        columns["error"].append(told.error.numpy())
        arms = {
            "model": told.z_cls,
            "copy_last": states.z_cls,
            "no_action": predict(model, states, torch.zeros_like(true), given).z_cls,
        }
        members = {label: np.flatnonzero(play.episode == label) for label in set(play.episode[at])}
        for i, start in enumerate(at.tolist()):
            others = members[play.episode[start]]
            others = others[others != start + 1]
            if len(others) > bank - 1:
                others = generator.choice(others, bank - 1, replace=False)
            chance.append(chance_mrr(len(others) + 1))
            candidates = play.z_cls[torch.from_numpy(np.append(others, start + 1))]
            for arm, latents in arms.items():
                away = distances(latents[i : i + 1], candidates)[0]
                reciprocal[arm].append(1 / _rank_of_last(away))
                if arm == "model":
                    place = int(away.argmin())
                    nearest.append(int(others[place]) if place < len(others) else start + 1)
    joined = {name: np.concatenate(values) for name, values in columns.items()}
    return Temporal(
        {arm: np.array(values) for arm, values in reciprocal.items()},
        joined["error"],
        np.array(chance),
        joined["episode"],
        np.array(nearest),
        joined["start"],
        joined["part"],
    )


def temporal_figures(found: Temporal, *, resamples: int, seed: int) -> dict[str, Figure]:
    """MRR of every arm, hit@1 of the model, and chance."""

    def figure(values: Array) -> Figure:
        return bootstrap_mean(values, found.episode, resamples=resamples, seed=seed)

    model = found.reciprocal["model"]
    return {
        **{arm: figure(values) for arm, values in found.reciprocal.items()},
        "margin_copy": figure(model - found.reciprocal["copy_last"]),
        "hit_at_1": figure((model == 1).astype(float)),
        "chance": figure(found.chance),
    }


def _rank_of_last(distance: Tensor) -> float:
    """Rank (1 is best) of the last entry; ties count half."""
    true = distance[-1]
    return float(1 + (distance < true).sum() + 0.5 * ((distance == true).sum() - 1))

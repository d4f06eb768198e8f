"""Counterfactual retrieval: from one game state, is it known what each action leads to?

The simulator was branched over every action (:mod:`iwm.data.branches`). The model predicts
the latent after each; the true outcome's latent is ranked by Euclidean distance among the
outcomes of all actions that the game did not end with. The latents ranked are those that
``/predict`` returns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from iwm.evaluation.play import ActionModel, Branches
from iwm.evaluation.predictions import Given, Predicted, predict
from iwm.evaluation.retrieval import distances
from iwm.evaluation.statistics import Figure, bootstrap_mean, chance_mrr

Array = np.ndarray[Any, Any]

ARMS = ("model", "copy_last", "no_action", "wrong_action")


@dataclass(frozen=True)
class Ranked:
    """Ranks of M predictions, one for each valid action of each state."""

    reciprocal: Array
    """[M]: 1/rank among the outcomes of all valid actions; ties count half."""
    hit: Array
    """[M]: 1 if the true outcome is the nearest, its share of the first place if tied."""
    merged: Array
    """[M]: 1/rank where outcomes that look alike are one candidate."""


def rank_outcomes(distance: Array, distinct: Array, valid: Array) -> Ranked:
    """Rank every valid action's outcome for the prediction under that action.

    Args:
        distance: [N, A, A], of the prediction under action i from the outcome of action j.
        distinct: bool [N, A, A], whether the outcomes of i and j look different. Those that
            do not are tied whatever their latents say: nobody could tell them apart.
        valid: bool [N, A].

    Returns:
        Ranks in order of (state, action). A tie counts half a place, so that a collapsed
        model, whose distances are all equal, gets the middle rank instead of the first.
    """
    count = distance.shape[1]
    other = ~np.eye(count, dtype=bool) & valid[:, None, :] & valid[:, :, None]
    true = np.diagonal(distance, axis1=1, axis2=2)[:, :, None]
    apart = other & distinct
    nearer = apart & (distance < true)
    tied = (apart & (distance == true)) | (other & ~distinct)
    rank = 1 + nearer.sum(2) + 0.5 * tied.sum(2)
    hit = np.where(nearer.any(2), 0.0, 1 / (1 + tied.sum(2)))
    # A group of outcomes that look alike weighs as much as one outcome.
    weight = 1 / (1 + (other & ~distinct).sum(2))[:, None, :]
    merged = 1 + (weight * (nearer + 0.5 * (apart & (distance == true)))).sum(2)
    return Ranked((1 / rank)[valid], hit[valid], (1 / merged)[valid])


def per_prediction(found: Branches, predicted: Predicted) -> tuple[Array, Array, Array]:
    """Expected error, reciprocal rank among the true outcomes and episode, [M] each."""
    away = _away(predicted.z_cls, found.outcome)
    ranked = rank_outcomes(away, found.distinct, found.valid)
    episode = np.repeat(found.states.episode, found.valid.sum(1))
    return predicted.error.numpy()[found.valid], ranked.reciprocal, episode


def counterfactual(
    model: ActionModel,
    found: Branches,
    given: Given,
    predicted: Predicted,
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Figure]:
    """Measure CLS predictions on one set; intervals are bootstrapped over episodes.

    Args:
        model: predicts once more, with no action.
        found: N states.
        given: what the model was given beside the action.
        predicted: for all states under every action.
        resamples: of the bootstrap.
        seed: of the bootstrap and of the wrong actions.

    Returns:
        Mean reciprocal rank of ``model``, ``copy_last`` (predict no change), ``no_action``
        (zero action vector) and ``wrong_action`` (another action's prediction), with
        ``chance`` for the number of valid actions and ``ceiling``, what a perfect model gets
        where outcomes look alike; ``hit_at_1``, ``chance_hit_at_1``, ``ceiling_hit_at_1``;
        ``merged``, ``merged_chance``: the same with outcomes that look alike as one candidate;
        ``indistinguishable``: share of states where at least two outcomes look alike;
        ``margin_copy``: by how much ``model`` is better than ``copy_last``.
    """
    nothing = predict(model, found.states, torch.zeros_like(found.states.actions[:, 0]), given)
    arms = _arms(found.valid, predicted.z_cls, found.states.z_cls, nothing.z_cls, seed)
    ranked = {
        arm: rank_outcomes(_away(guess, found.outcome), found.distinct, found.valid)
        for arm, guess in arms.items()
    }
    return _figures(ranked, found, resamples, seed)


@torch.no_grad()
def patch_counterfactual(
    model: ActionModel, found: Branches, *, resamples: int = 1000, seed: int = 0, batch: int = 64
) -> dict[str, dict[str, Figure]]:
    """The same for what is predicted when the patches are given too.

    Args:
        model: predicts.
        found: N states.
        resamples: of the bootstrap.
        seed: of the bootstrap and of the wrong actions.
        batch: states at a time.

    Returns:
        ``with_patches``, for the predicted CLS, and ``patches``, for all of the predicted
        patches. Figures as from :func:`counterfactual`.
    """
    device = next(model.parameters()).device
    parts: dict[str, dict[str, list[Ranked]]] = {
        mode: {arm: [] for arm in ARMS} for mode in ("with_patches", "patches")
    }
    for begin in range(0, len(found.states), batch):
        rows = slice(begin, begin + batch)
        cls, patches = found.states.z_cls[rows], found.states.z_patches[rows]
        every = found.states.actions[rows]
        # The last one is "no action".
        told = [
            model.predict(cls.to(device), actions.to(device), patches.to(device))
            for actions in (*every.unbind(1), torch.zeros_like(every[:, 0]))
        ]
        guess_cls = torch.stack([one.z_cls.cpu() for one in told], 1)
        guess_patches = torch.stack([one.z_patches.flatten(1).cpu() for one in told], 1)
        compared = {
            "with_patches": (guess_cls, cls, found.outcome[rows]),
            "patches": (guess_patches, patches.flatten(1), found.outcome_patches[rows]),
        }
        valid, distinct = found.valid[rows], found.distinct[rows]
        for mode, (guess, present, outcome) in compared.items():
            arms = _arms(valid, guess[:, :-1], present, guess[:, -1], seed + begin)
            for arm, latents in arms.items():
                away = _away(latents, outcome)
                parts[mode][arm].append(rank_outcomes(away, distinct, valid))
    return {
        mode: _figures({arm: _join(ones) for arm, ones in arms.items()}, found, resamples, seed)
        for mode, arms in parts.items()
    }


def _join(ones: list[Ranked]) -> Ranked:
    names = ("reciprocal", "hit", "merged")
    return Ranked(*(np.concatenate([getattr(one, name) for one in ones]) for name in names))


def _away(guess: Tensor, outcome: Tensor) -> Array:
    """Distances [N, A, A] of predictions from outcomes, both [N, A, ...]."""
    found: Array = distances(guess, outcome.flatten(2)).numpy()
    return found


def _arms(
    valid: Array, guess: Tensor, present: Tensor, nothing: Tensor, seed: int
) -> dict[str, Tensor]:
    """Predictions [N, A, F] of every arm; ``present`` and ``nothing`` are [N, F]."""
    return {
        "model": guess,
        "copy_last": present.unsqueeze(1).expand_as(guess),
        "no_action": nothing.unsqueeze(1).expand_as(guess),
        "wrong_action": _shuffle(guess, valid, torch.Generator().manual_seed(seed)),
    }


def _shuffle(guess: Tensor, valid: Array, generator: torch.Generator) -> Tensor:
    """Each action's prediction replaced by that of another valid action of the same state."""
    order = torch.arange(guess.shape[1]).repeat(len(guess), 1)
    for state, there in enumerate(torch.from_numpy(valid)):
        places = there.nonzero()[:, 0]
        if len(places) > 1:
            turn = int(torch.randint(1, len(places), (1,), generator=generator))
            order[state, places] = places.roll(turn)
    return guess.gather(1, order.unsqueeze(-1).expand_as(guess))


def _figures(
    ranked: dict[str, Ranked], found: Branches, resamples: int, seed: int
) -> dict[str, Figure]:
    valid, distinct = found.valid, found.distinct
    count = valid.sum(1)
    episode = np.repeat(found.states.episode, count)

    def figure(values: Array, clusters: Array = episode) -> Figure:
        return bootstrap_mean(values, clusters, resamples=resamples, seed=seed)

    # A perfect model: its distance is 0 for the true outcome alone.
    oracle = 1.0 - np.eye(valid.shape[1])[None].repeat(len(valid), 0)
    best = rank_outcomes(oracle, distinct, valid)
    alike = ~distinct & valid[:, None, :] & valid[:, :, None]
    groups = np.where(valid, 1 / np.maximum(alike.sum(2), 1), 0.0).sum(1)
    merged_chance = np.array([chance_mrr(max(1, round(float(k)))) for k in groups])
    model = ranked["model"]
    return {
        **{arm: figure(one.reciprocal) for arm, one in ranked.items()},
        "margin_copy": figure(model.reciprocal - ranked["copy_last"].reciprocal),
        "chance": figure(np.repeat([chance_mrr(int(k)) for k in count], count)),
        "ceiling": figure(best.reciprocal),
        "hit_at_1": figure(model.hit),
        "chance_hit_at_1": figure(np.repeat(1 / count, count)),
        "ceiling_hit_at_1": figure(best.hit),
        "merged": figure(model.merged),
        "merged_chance": figure(np.repeat(merged_chance, count)),
        "indistinguishable": figure((alike.sum(2) > 1).any(1).astype(float), found.states.episode),
    }

"""Counterfactual retrieval: from one game state, is it known what each action leads to?

The simulator was branched over every action (:mod:`iwm.data.branches`). The model predicts
the latent after each; the true outcome's latent is ranked by Euclidean distance among the
outcomes of all actions that the game did not end with. The latents ranked are those that
``/predict`` returns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from iwm.data.branches import BranchSet
from iwm.errors import ModelError
from iwm.evaluation.retrieval import distances
from iwm.evaluation.statistics import Figure, bootstrap_mean, chance_mrr
from iwm.models.iwm import Prediction
from iwm.progress import Progress

Array = np.ndarray[Any, Any]

Mode = Literal["cls_only", "with_patches", "patches"]
"""CLS predicted from CLS alone; CLS predicted with patches; the patches themselves."""

MODES: tuple[Mode, ...] = ("cls_only", "with_patches", "patches")
ARMS = ("model", "copy_last", "no_action", "shuffled_action")


class ActionModel(Protocol):
    """What is asked of an action-conditioned model (:class:`iwm.models.action.ActionIWM`)."""

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """Action names."""
        ...

    @property
    def history(self) -> int:
        """Most frames of context, the present one included."""
        ...

    def parameters(self) -> Any:
        """Weights; the first one's device is the model's."""
        ...

    def action_vectors(self, ids: Tensor, continuous: Tensor | None = None) -> Tensor:
        """Positions in the vocabulary [...] -> vectors [..., A]."""
        ...

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images [B, 3, H, W] -> z_cls [B, D], z_patches [B, P, D]."""
        ...

    def predict(
        self,
        z_cls: Tensor,
        action: Tensor,
        z_patches: Tensor | None = None,
        history: Any | None = None,
    ) -> Prediction:
        """One step ahead."""
        ...


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


def positions(model: ActionModel, branches: BranchSet) -> Tensor:
    """Where the game's actions stand in the model's vocabulary, int64 [A].

    Raises:
        ModelError: the model lacks one.
    """
    missing = [name for name in branches.vocabulary if name not in model.vocabulary]
    if missing:
        raise ModelError(
            f"counterfactual set {branches.name}: action {missing[0]!r} is not among the "
            f"model's: {', '.join(model.vocabulary)}"
        )
    return torch.tensor([model.vocabulary.index(name) for name in branches.vocabulary])


@torch.no_grad()
def counterfactual(
    model: ActionModel,
    branches: BranchSet,
    *,
    history: int,
    mode: Mode,
    resamples: int = 1000,
    seed: int = 0,
    batch_size: int = 32,
) -> dict[str, Figure]:
    """Measure one model on one set; intervals are bootstrapped over episodes.

    Args:
        model: in eval mode.
        branches: N states.
        history: frames of context given, the present one included; bounded by what the model
            attends to and what the set holds.
        mode: what is predicted from what.
        resamples: of the bootstrap.
        seed: of the bootstrap and of the shuffled actions.
        batch_size: states encoded at a time, each with its context and outcomes.

    Returns:
        Mean reciprocal rank of ``model``, ``copy_last`` (predict no change), ``no_action``
        (zero action vector) and ``shuffled_action`` (another action's prediction), with
        ``chance`` for the number of valid actions and ``ceiling``, what a perfect model gets
        where outcomes look alike; ``hit_at_1``, ``chance_hit_at_1``, ``ceiling_hit_at_1``;
        ``merged``, ``merged_chance``: the same with outcomes that look alike as one candidate;
        ``indistinguishable``: share of states where at least two outcomes look alike.

    Raises:
        ModelError: an action that the model does not know, or frames of another size.
    """
    vectors = model.action_vectors(positions(model, branches)).cpu()
    generator = torch.Generator().manual_seed(seed)
    valid, distinct = np.asarray(branches.valid), np.asarray(branches.distinct)
    ranked: dict[str, list[Ranked]] = {arm: [] for arm in ARMS}
    label = f"counterfactual {branches.name} {mode}"
    with Progress(label, len(branches), "states") as progress:
        for begin in range(0, len(branches), batch_size):
            rows = slice(begin, begin + batch_size)
            guesses, outcome = _predict(model, branches, rows, vectors, history, mode)
            guesses["shuffled_action"] = _shuffle(guesses["model"], valid[rows], generator)
            for arm, guess in guesses.items():
                found = distances(guess.flatten(2), outcome.flatten(2)).cpu().numpy()
                ranked[arm].append(rank_outcomes(found, distinct[rows], valid[rows]))
            progress.advance(len(valid[rows]))
    return _figures(ranked, branches, resamples, seed)


def _predict(
    model: ActionModel,
    branches: BranchSet,
    rows: slice,
    vectors: Tensor,
    history: int,
    mode: Mode,
) -> tuple[dict[str, Tensor], Tensor]:
    """Predictions of each arm but the shuffled, and outcomes: all [n, A, ...]."""
    from iwm.models.action import History

    device = next(model.parameters()).device
    frames = np.array(branches.frames[rows])
    count, context = frames.shape[:2]
    choices = len(vectors)
    keep = max(1, min(history, model.history, context))

    def encode(images: Array) -> tuple[Tensor, Tensor]:
        flat = torch.from_numpy(images.reshape(-1, *images.shape[-3:]))
        return model.encode(flat.permute(0, 3, 1, 2).to(device))

    cls, patches = encode(frames[:, -1])
    repeat = torch.arange(count, device=device).repeat_interleave(choices + 1)
    # The last of a state's rows is "no action".
    given = torch.cat([vectors, torch.zeros_like(vectors[:1])]).repeat(count, 1).to(device)
    past = None
    if keep > 1:
        earlier = encode(frames[:, -keep:-1])[0].view(count, keep - 1, -1)
        taken = np.array(branches.actions[rows][:, -(keep - 1) :])
        done = vectors[torch.from_numpy(taken)].to(device)
        past = History(earlier[repeat], done[repeat])
    found = model.predict(cls[repeat], given, None if mode == "cls_only" else patches[repeat], past)
    outcome_cls, outcome_patches = encode(np.array(branches.outcomes[rows]))
    if mode == "patches":
        assert found.z_patches is not None
        guess, present, outcome = found.z_patches, patches, outcome_patches
    else:
        guess, present, outcome = found.z_cls, cls, outcome_cls
    guess = guess.reshape(count, choices + 1, -1)
    arms = {
        "model": guess[:, :choices],
        "copy_last": present.view(count, 1, -1).expand(-1, choices, -1),
        "no_action": guess[:, choices:].expand(-1, choices, -1),
    }
    return arms, outcome.view(count, choices, -1)


def _shuffle(guess: Tensor, valid: Array, generator: torch.Generator) -> Tensor:
    """Each action's prediction replaced by that of another valid action of the same state."""
    order = torch.arange(guess.shape[1]).repeat(len(guess), 1)
    for state, there in enumerate(torch.from_numpy(valid)):
        places = there.nonzero()[:, 0]
        if len(places) > 1:
            turn = int(torch.randint(1, len(places), (1,), generator=generator))
            order[state, places] = places.roll(turn)
    index = order.to(guess.device).unsqueeze(-1).expand_as(guess)
    return guess.gather(1, index)


def _figures(
    ranked: dict[str, list[Ranked]], branches: BranchSet, resamples: int, seed: int
) -> dict[str, Figure]:
    valid, distinct = np.asarray(branches.valid), np.asarray(branches.distinct)
    count = valid.sum(1)
    episode = np.repeat(np.asarray(branches.episode), count)

    def figure(values: Array, clusters: Array = episode) -> Figure:
        return bootstrap_mean(values, clusters, resamples=resamples, seed=seed)

    def joined(arm: str, name: str) -> Array:
        return np.concatenate([getattr(part, name) for part in ranked[arm]])

    # A perfect model: its distance is 0 for the true outcome alone.
    oracle = 1.0 - np.eye(valid.shape[1])[None].repeat(len(valid), 0)
    best = rank_outcomes(oracle, distinct, valid)
    alike = ~distinct & valid[:, None, :] & valid[:, :, None]
    groups = np.where(valid, 1 / np.maximum(alike.sum(2), 1), 0.0).sum(1)
    merged_chance = np.array([chance_mrr(max(1, round(float(k)))) for k in groups])
    return {
        **{arm: figure(joined(arm, "reciprocal")) for arm in ARMS},
        "chance": figure(np.repeat([chance_mrr(int(k)) for k in count], count)),
        "ceiling": figure(best.reciprocal),
        "hit_at_1": figure(joined("model", "hit")),
        "chance_hit_at_1": figure(np.repeat(1 / count, count)),
        "ceiling_hit_at_1": figure(best.hit),
        "merged": figure(joined("model", "merged")),
        "merged_chance": figure(np.repeat(merged_chance, count)),
        "indistinguishable": figure(
            (alike.sum(2) > 1).any(1).astype(float), np.asarray(branches.episode)
        ),
    }

"""Transitions that did not happen, and the ordinary ones they are told from.

From counterfactual sets, made with the game's own engine: ``teleport`` (the outcome as seen
from elsewhere in the level), ``removal`` (an object taken out of the world), ``wrong_action``
(the outcome of another action, only where the two outcomes visibly differ). From held-out
play: ``frozen`` (the picture stood still where the game moved), ``recolour`` (the next frame
under a colour jitter), ``jump`` (a frame from elsewhere in the same episode).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from iwm.data.augment import jitter, sample_jitter, to_float
from iwm.data.branches import differ
from iwm.data.config import AugmentConfig
from iwm.evaluation.play import ActionModel, Branches, Play, encode, states_of
from iwm.evaluation.predictions import Given, Predicted, predict_every
from iwm.evaluation.surprise import Transitions, transitions

Array = np.ndarray[Any, Any]
FAR = 16
"""Steps between a frame and the one that stands in for the next one in ``jump``."""


@dataclass(frozen=True)
class Case:
    """One kind of anomaly in one recording, beside ordinary transitions of the same states.

    ``share``: of the candidates, how many are anomalies that a picture can show.
    """

    kind: str
    normal: Transitions
    odd: Transitions
    share: float


def of_branches(found: Branches, predicted: Predicted) -> tuple[Transitions, list[Case]]:
    """The ordinary transitions of a set (what was really done and came), and its anomalies.

    Args:
        found: the set.
        predicted: for all its states, under every action.
    """
    states, everyone = found.states, np.arange(len(found.states))
    claimed = states.claimed

    def seen(actual: torch.Tensor) -> Transitions:
        return transitions(states.name, predicted, actual, claimed, states.episode)

    ordinary = seen(found.outcome[torch.from_numpy(everyone), torch.from_numpy(claimed)])
    cases = []
    for kind, actual, has in (
        ("teleport", found.teleported, found.has_teleported),
        ("removal", found.removed, found.has_removed),
    ):
        if has.any():
            share = float(has.mean())
            cases.append(Case(kind, ordinary.where(has), seen(actual).where(has), share))
    case = _wrong_action(found, predicted)
    return ordinary, cases if case is None else [*cases, case]


def _wrong_action(found: Branches, predicted: Predicted) -> Case | None:
    """Every outcome under every claim, [N, claimed, came], where both exist and differ."""
    states, names = found.states, found.valid.shape[1]
    exists = found.valid[:, :, None] & found.valid[:, None, :]
    other = exists & ~np.eye(names, dtype=bool)
    visible = other & found.distinct
    if not visible.any():
        return None
    by_action = (predicted.z_cls[:, :, None] - found.outcome[:, None]).norm(dim=-1).numpy()
    expected = predicted.error.numpy()

    def pairs(chosen: Array) -> Transitions:
        state, claimed, came = np.nonzero(chosen)
        return Transitions(
            states.name,
            by_action[state, :, came],
            expected[state],
            claimed.astype(np.int64),
            states.episode[state],
        )

    own = exists & np.eye(names, dtype=bool)
    share = float(visible.sum() / other.sum())
    return Case("wrong_action", pairs(own), pairs(visible), share)


def of_play(
    model: ActionModel, play: Play, given: Given, augment: AugmentConfig, seed: int
) -> tuple[Transitions, list[Case]]:
    """The ordinary transitions of held-out play, and anomalies made of its frames."""
    at = play.windows(model.history - 1, 1)
    states = states_of(model, play, at)
    predicted = predict_every(model, states, given)

    def seen(actual: torch.Tensor) -> Transitions:
        return transitions(play.name, predicted, actual, states.claimed, states.episode)

    def case(kind: str, actual: torch.Tensor, rows: Array) -> list[Case]:
        if not rows.any():
            return []
        return [Case(kind, ordinary.where(rows), seen(actual).where(rows), float(rows.mean()))]

    following = torch.from_numpy(at + 1)
    ordinary = seen(play.z_cls[following])
    generator = np.random.default_rng(seed)
    frames = play.images.permute(0, 2, 3, 1).numpy()
    moved = np.array([differ(frames[i], frames[i + 1]) for i in at], dtype=bool)
    far, has_far = _elsewhere(play, at, generator)
    drawn = sample_jitter(len(at), augment, torch.Generator().manual_seed(seed))
    parts = zip(torch.split(play.images[following], 256), torch.split(drawn, 256), strict=True)
    coloured = [(jitter(to_float(images), by) * 255).round().byte() for images, by in parts]
    recoloured, _ = encode(model, torch.cat(coloured)) if len(at) else (play.z_cls[:0], None)
    return ordinary, [
        *case("frozen", states.z_cls, moved),
        *case("recolour", recoloured, np.ones(len(at), bool)),
        *case("jump", play.z_cls[torch.from_numpy(far)], has_far),
    ]


def _elsewhere(play: Play, at: Array, generator: np.random.Generator) -> tuple[Array, Array]:
    """For each frame another of its episode at least :data:`FAR` steps off, where there is one."""
    far, has = at.copy(), np.zeros(len(at), bool)
    for place, start in enumerate(at.tolist()):
        there = np.flatnonzero(play.episode == play.episode[start])
        there = there[np.abs(there - start - 1) >= FAR]
        if len(there):
            far[place], has[place] = generator.choice(there), True
    return far, has


def merge(cases: list[Case]) -> dict[str, list[Case]]:
    """Cases by kind, in a fixed order."""
    order = ("teleport", "removal", "wrong_action", "frozen", "recolour", "jump")
    return {kind: found for kind in order if (found := [c for c in cases if c.kind == kind])}

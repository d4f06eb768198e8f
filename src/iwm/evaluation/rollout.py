"""Error of predictions fed with predictions, step by step, beside what knows nothing.

From every window of held-out play the model rolls out k = 1..K steps under the actions that
were really taken, under wrong ones and under none; the distance to the true latent stands
beside that of the last real latent, which in games is a strong guess. Differences are paired:
the same window, the same step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from iwm.evaluation.play import ActionModel, Play, make_history, require
from iwm.evaluation.statistics import Figure, bootstrap_mean

Array = np.ndarray[Any, Any]
Context = Literal["history", "single"]

ARMS = ("model", "copy_last", "wrong_action", "no_action")
MARGINS = {
    "margin_copy": "copy_last",
    "margin_wrong": "wrong_action",
    "margin_none": "no_action",
}
"""Name of a paired difference -> the arm whose error the model's is taken from."""


@dataclass(frozen=True)
class Rollouts:
    """``distance``: {arm: [M, K]} Euclidean distance to the true latent; ``predicted_error``
    [M, K]: the model's own expectation, per dimension; ``episode`` [M]; ``latents``
    [S, K, D]: the first S windows' predictions, which began at ``shown``: (play, frame).
    """

    distance: dict[str, Array]
    predicted_error: Array
    episode: Array
    latents: Tensor
    shown: tuple[tuple[int, int], ...]


@torch.no_grad()
def rollouts(
    model: ActionModel,
    parts: list[Play],
    *,
    horizon: int,
    context: Context,
    windows: int,
    seed: int,
    batch: int = 256,
    pictures: int = 3,
) -> Rollouts:
    """Roll out windows of held-out play.

    Args:
        model: in eval mode.
        parts: held-out play.
        horizon: K.
        context: ``history``: as many real frames as the model takes; ``single``: one. The
            windows are the same.
        windows: at most this many, drawn evenly from all there are.
        seed: of the choice, and of the wrong actions.
        batch: windows rolled out at once.
        pictures: S, windows whose predictions are kept, spread over the recordings.

    Raises:
        DataError: no window is long enough.
    """
    generator = np.random.default_rng(seed)
    before = model.history - 1
    starts = require(parts, before, horizon, "measured")
    total = sum(len(at) for at in starts)
    found: dict[str, list[Array]] = {arm: [] for arm in ARMS}
    errors, episodes, latents, shown = [], [], [], []
    for number, (play, at) in enumerate(zip(parts, starts, strict=True)):
        at = np.sort(generator.permutation(at)[: -(-windows * len(at) // total)])
        wrong = _wrong(model, play, at, horizon, generator)
        keep = set(at[:: max(1, len(at) // pictures)][:pictures].tolist())
        for begin in range(0, len(at), batch):
            rows = at[begin : begin + batch]
            steps = rows[:, None] + np.arange(horizon)
            truth = play.z_cls[torch.from_numpy(steps + 1)]
            true = play.vectors(model, steps)
            actions = {
                "model": true,
                "wrong_action": wrong[begin : begin + batch],
                "no_action": torch.zeros_like(true),
            }
            for arm, vectors in actions.items():
                rolled = _roll(model, play, rows, vectors, before if context == "history" else 0)
                found[arm].append(_distance(rolled.z_cls.cpu(), truth))
                if arm == "model":
                    errors.append(rolled.log_error.exp().cpu().numpy())
                    chosen = [i for i, row in enumerate(rows.tolist()) if row in keep]
                    latents.append(rolled.z_cls.cpu()[chosen])
                    shown += [(number, int(rows[i])) for i in chosen]
            last = play.z_cls[torch.from_numpy(rows)].unsqueeze(1)
            found["copy_last"].append(_distance(last, truth))
            episodes.append(play.episode[rows])
    return Rollouts(
        {arm: np.concatenate(values) for arm, values in found.items()},
        np.concatenate(errors),
        np.concatenate(episodes),
        torch.cat(latents),
        tuple(shown),
    )


def rollout_figures(found: Rollouts, *, resamples: int, seed: int) -> dict[str, Any]:
    """``{k1: {arm: figure, margin_*: figure}, ...}`` with episode-bootstrap intervals."""

    def figure(values: Array) -> Figure:
        return bootstrap_mean(values, found.episode, resamples=resamples, seed=seed)

    figures: dict[str, Any] = {}
    for step in range(found.predicted_error.shape[1]):
        errors = {arm: values[:, step] for arm, values in found.distance.items()}
        figures[f"k{step + 1}"] = {
            **{arm: figure(values) for arm, values in errors.items()},
            **{name: figure(errors[arm] - errors["model"]) for name, arm in MARGINS.items()},
        }
    return figures


def _roll(model: ActionModel, play: Play, rows: Array, vectors: Tensor, before: int) -> Any:
    device = next(model.parameters()).device
    past = rows[:, None] + np.arange(-before, 0)
    history = None
    if before:
        history = make_history(
            play.z_cls[torch.from_numpy(past)].to(device), play.vectors(model, past).to(device)
        )
    return model.rollout(play.z_cls[torch.from_numpy(rows)].to(device), vectors.to(device), history)


def _wrong(
    model: ActionModel, play: Play, at: Array, horizon: int, generator: np.random.Generator
) -> Tensor:
    """Other actions [M, K, A]: of the recording's names, any but the true one, uniformly;
    of continuous actions, those of another window.
    """
    steps = at[:, None] + np.arange(horizon)
    if play.continuous is not None:
        shift = generator.integers(1, max(2, len(at)), len(at))
        return play.vectors(model, steps[(np.arange(len(at)) + shift) % max(1, len(at))])
    choices = play.choices.numpy()
    place = np.argsort(choices, kind="stable")
    own = place[np.searchsorted(choices[place], play.action.numpy()[steps])]
    count = len(choices)
    # With a single action there is no other: the arm is then the model's own.
    shift = generator.integers(1, count, own.shape) if count > 1 else np.zeros_like(own)
    return model.action_vectors(torch.from_numpy(choices[(own + shift) % count]))


def _distance(predicted: Tensor, truth: Tensor) -> Array:
    distance: Array = (predicted - truth).norm(dim=-1).numpy()
    return distance

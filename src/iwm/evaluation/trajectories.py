"""How well a world model on vector states foretells held-out episodes.

The figure is the share of (episode, start, step) whose root mean square error, in standard
deviations of the states, is at most a bound. Beside the model stand: no change; constant
velocity (the state's own velocities where it has them, else the last difference); a linear
model fitted to the training split; and the model itself under another episode's actions.
Intervals resample whole episodes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from iwm.data.trajectories import StateBatch, TrajectoryStore
from iwm.evaluation.config import TrajectoryEvaluateConfig
from iwm.evaluation.statistics import Figure, bootstrap_mean

Array = np.ndarray[Any, Any]
_CHUNK = 256
ARMS = ("model", "wrong_action", "persistence", "constant_velocity", "linear")


class Foreteller(Protocol):
    """What is measured; see :class:`iwm.models.embodied.WorldModel`."""

    state_std: Tensor

    def predict(self, state: Tensor, actions: Tensor) -> Tensor:
        """[B, S] and [B, K, A] -> states [B, K, S]."""
        ...

    def expected_error(self, state: Tensor, actions: Tensor) -> Tensor:
        """The RMSE [B, K] expected of it, in standard deviations."""
        ...


@dataclass(frozen=True)
class Foretold:
    """What was foretold from M starts: ``truth`` and each arm's states [M, K, S], their RMSE
    [M, K] in standard deviations, the RMSE that the model ``expected``, and each start's
    ``episode`` [M].
    """

    truth: Tensor
    states: dict[str, Tensor]
    rmse: dict[str, Array]
    expected: Array
    episode: Array


def foretell(
    model: Foreteller, store: TrajectoryStore, split: str, config: TrajectoryEvaluateConfig
) -> Foretold:
    """Roll out from starts spread over the split's episodes.

    Raises:
        DataError: no episode is as long as the horizon.
    """
    # One state more, before the start: constant velocity without velocities needs it.
    window = config.horizon + 2
    rows, episode = store.starts(split, window, config.stride)
    if len(rows) > config.starts:
        kept = np.linspace(0, len(rows) - 1, config.starts).round().astype(np.int64)
        rows, episode = rows[kept], episode[kept]
    batch = store.windows(rows, window)
    start, truth = batch.states[:, 1], batch.states[:, 2:]
    actions = batch.actions[:, 1:-1]
    device = model.state_std.device
    told, wrong, expected = [], [], []
    # Another start's actions: half a turn of the list, so mostly another episode's.
    other = torch.roll(actions, len(actions) // 2, 0)
    for part in torch.split(torch.arange(len(start)), _CHUNK):
        here = start[part].to(device)
        told.append(model.predict(here, actions[part].to(device)).cpu())
        wrong.append(model.predict(here, other[part].to(device)).cpu())
        expected.append(model.expected_error(here, actions[part].to(device)).cpu())
    states = {
        "model": torch.cat(told),
        "wrong_action": torch.cat(wrong),
        "persistence": start[:, None].expand_as(truth),
        "constant_velocity": constant_velocity(batch, store, config.horizon),
        "linear": linear(start, actions, store),
    }
    std = model.state_std.cpu()
    rmse = {
        arm: ((told - truth) / std).square().mean(-1).sqrt().numpy() for arm, told in states.items()
    }
    return Foretold(truth, states, rmse, torch.cat(expected).numpy(), episode)


def constant_velocity(batch: StateBatch, store: TrajectoryStore, horizon: int) -> Tensor:
    """States [M, K, S] that go on as they did, from the window's second state."""
    before, start = batch.states[:, 0], batch.states[:, 1]
    if store.info.velocities:
        places = torch.tensor(store.info.velocities)
        change = torch.where(places >= 0, start[:, places.clamp_min(0)], 0.0) * store.info.step_s
    else:
        change = start - before
    return start[:, None] + torch.arange(1.0, horizon + 1)[:, None] * change[:, None]


def linear(start: Tensor, actions: Tensor, store: TrajectoryStore) -> Tensor:
    """States [M, K, S] of the least-squares step ``s' = M [s, a, 1]``, fed with its own.

    The fit is on the training split, with a ridge of a millionth of the data's scale. Numbers
    are kept within three times the range that training saw: an unstable fit would overflow.
    """
    items = store.episodes("train")
    at = torch.cat([torch.arange(i.first, i.first + i.states - 1) for i in items])
    ones = torch.ones(len(at), 1)
    seen = torch.cat([store.states[at], store.actions[at], ones], 1).double()
    gram = seen.T @ seen
    ridge = 1e-6 * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    step = torch.linalg.solve(gram + ridge, seen.T @ store.states[at + 1].double()).float()
    low, high = store.states[at].amin(0), store.states[at].amax(0)
    low, high = low - (high - low), high + (high - low)
    here, along = start, []
    for action in actions.unbind(1):
        here = torch.cat([here, action, torch.ones(len(here), 1)], 1) @ step
        here = torch.minimum(torch.maximum(here, low), high)
        along.append(here)
    return torch.stack(along, 1)


def figures(
    found: Foretold, config: TrajectoryEvaluateConfig, resamples: int, seed: int
) -> dict[str, Any]:
    """Shares within the bound over all steps and at single ones, errors at single steps, the
    model's margins over the other arms, and what it expected against what came.
    """

    def figure(values: Array) -> Figure:
        """Over all steps of all starts."""
        steps = values.shape[1] if values.ndim > 1 else 1
        return bootstrap_mean(
            values.reshape(-1),
            np.repeat(found.episode, steps),
            resamples=resamples,
            seed=seed,
        )

    within = {arm: rmse <= config.bound for arm, rmse in found.rmse.items()}
    at = {f"k{k}": k - 1 for k in config.report if k <= config.horizon}
    spread = found.rmse["model"].ravel(), found.expected.ravel()
    return {
        "accuracy": {arm: figure(within[arm]) for arm in ARMS},
        "accuracy_at": {
            name: {arm: figure(within[arm][:, k]) for arm in ARMS} for name, k in at.items()
        },
        "rmse": {arm: figure(found.rmse[arm]) for arm in ARMS},
        "rmse_at": {
            name: {arm: figure(found.rmse[arm][:, k]) for arm in ARMS} for name, k in at.items()
        },
        # Of the states' variance, over all steps: 1 is perfect, 0 is foretelling the mean.
        "explained": {arm: figure(1 - np.square(found.rmse[arm])) for arm in ARMS},
        # Of the same starts: where these lie above 0 the model is better than the arm.
        "margin": {
            arm: figure(found.rmse[arm] - found.rmse["model"]) for arm in ARMS if arm != "model"
        },
        "margin_at": {
            name: {
                arm: figure((found.rmse[arm] - found.rmse["model"])[:, k])
                for arm in ARMS
                if arm != "model"
            }
            for name, k in at.items()
        },
        "uncertainty": {
            "expected": figure(found.expected),
            "measured": figure(found.rmse["model"]),
            "correlation": correlation(*spread, found.episode, resamples, seed),
        },
    }


def correlation(
    measured: Array, expected: Array, episode: Array, resamples: int, seed: int
) -> Figure:
    """Rank correlation of measured with expected errors, its interval over episodes."""
    from scipy.stats import rankdata

    labels = np.repeat(episode, len(measured) // len(episode))
    # The correlation of ranks over all values; episodes are resampled on those ranks.
    x, y = (rankdata(values) for values in (measured, expected))
    _, groups = np.unique(labels, return_inverse=True)
    sums = np.stack(
        [np.bincount(groups, weights=w) for w in (np.ones_like(x), x, y, x * x, y * y, x * y)]
    )
    drawn = np.random.default_rng(seed).integers(sums.shape[1], size=(resamples, sums.shape[1]))
    resampled = _pearson(sums[:, drawn].sum(-1))
    low, high = np.quantile(resampled, [0.025, 0.975])
    value = float(_pearson(sums.sum(1, keepdims=True))[0])
    return {"mean": value, "low": float(low), "high": float(high), "n": len(x)}


def _pearson(sums: Array) -> Array:
    """From sums [6, ...] of 1, x, y, xx, yy, xy."""
    n, x, y, xx, yy, xy = sums
    cov = xy / n - x * y / n**2
    var = (xx / n - (x / n) ** 2) * (yy / n - (y / n) ** 2)
    found: Array = cov / np.sqrt(np.maximum(var, 1e-24))
    return found


def calibration(found: Foretold, bins: int = 10) -> dict[str, list[float]]:
    """Expected and measured RMSE in bins of as many steps each, by what was expected."""
    expected, measured = found.expected.ravel(), found.rmse["model"].ravel()
    parts: Sequence[Array] = np.array_split(np.argsort(expected, kind="stable"), bins)
    return {
        "expected": [float(expected[part].mean()) for part in parts if len(part)],
        "measured": [float(measured[part].mean()) for part in parts if len(part)],
    }

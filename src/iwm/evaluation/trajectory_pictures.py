"""Pictures of foretold trajectories: paths against the truth, errors over the steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from iwm.data.trajectories import TrajectoryStore
from iwm.evaluation.config import TrajectoryEvaluateConfig
from iwm.evaluation.pictures import (
    ACCENT,
    INK,
    MUTED,
    _figure,
    _plain,
    _save,
    calibration_plot,
)
from iwm.evaluation.trajectories import ARMS, Foretold, calibration

_COLOURS = dict(zip(ARMS, (ACCENT, "#c2571a", MUTED, "#7a5195", "#3c8d5a"), strict=True))
_SHOWN = 6


def draw(
    found: Foretold,
    store: TrajectoryStore,
    std: Tensor,
    config: TrajectoryEvaluateConfig,
    folder: Path,
) -> None:
    """Write ``paths.png``, ``horizon.png`` and ``calibration.png`` into ``folder``."""
    horizon(found, config, folder / "horizon.png")
    if store.info.velocities:
        paths(found, store, folder / "paths.png")
    else:
        courses(found, std, folder / "paths.png")
    curve = calibration(found)
    ece = float(np.mean(np.abs(np.subtract(curve["expected"], curve["measured"]))))
    panel = {"expected": curve["expected"], "actual": curve["measured"], "ece": ece}
    calibration_plot({"RMSE, standard deviations": panel}, folder / "calibration.png")


def horizon(found: Foretold, config: TrajectoryEvaluateConfig, path: Path) -> None:
    """Error and share within the bound over the steps, every arm."""
    figure, (left, right) = _figure(10, 3.6, ncols=2)
    for arm in ARMS:
        rmse = found.rmse[arm]
        steps = np.arange(1, rmse.shape[1] + 1)
        style: dict[str, Any] = {
            "color": _COLOURS[arm],
            "linewidth": 2.2 if arm == "model" else 1.2,
        }
        left.plot(steps, np.median(rmse, 0), label=arm.replace("_", " "), **style)
        right.plot(steps, (rmse <= config.bound).mean(0), label=arm.replace("_", " "), **style)
        if arm == "model":
            low, high = np.quantile(rmse, [0.1, 0.9], axis=0)
            left.fill_between(steps, low, high, color=ACCENT, alpha=0.15, linewidth=0)
    left.plot(steps, np.median(found.expected, 0), color=INK, linestyle=":", label="expected")
    left.axhline(config.bound, color=INK, linewidth=0.8, linestyle="--")
    left.set_ylim(0, 2.0)
    right.set_ylim(0, 1.02)
    left.legend(fontsize=7, frameon=False)
    _plain(left, "Median error", "step of the rollout, k", "RMSE, standard deviations")
    _plain(right, f"Within {config.bound:g} standard deviations", "step, k", "share")
    _save(figure, path)


def paths(found: Foretold, store: TrajectoryStore, path: Path) -> None:
    """Bodies' ways through the box: the truth, and what was foretold from the first state."""
    names = store.info.state_names
    pairs = [
        (place, names.index(name[:-1] + "y"))
        for place, name in enumerate(names)
        if name.endswith(".x")
    ]
    figure, panels = _figure(10, 6.8, nrows=2, ncols=_SHOWN // 2, squeeze=False)
    chosen = np.linspace(0, len(found.episode) - 1, _SHOWN).round().astype(int)
    palette = (ACCENT, "#c2571a", "#7a5195", "#3c8d5a", "#b5485d", "#6f7d1f", INK)
    for axes, row in zip(panels.flat, chosen.tolist(), strict=True):
        truth, told = found.truth[row].numpy(), found.states["model"][row].numpy()
        for (x, y), colour in zip(pairs, palette, strict=False):
            axes.plot(truth[:, x], truth[:, y], color=colour, linewidth=3, alpha=0.3)
            axes.plot(told[:, x], told[:, y], color=colour, linewidth=1, linestyle="--")
            axes.plot(*truth[0, [x, y]], color=colour, marker="o", markersize=4)
        axes.set_aspect("equal")
        error = found.rmse["model"][row]
        _plain(axes, f"RMSE {error.mean():.2f}, at the end {error[-1]:.2f}", "", "")
    _save(figure, path)


def courses(found: Foretold, std: Tensor, path: Path) -> None:
    """The most lively numbers of a state over time: the truth, and what was foretold."""
    figure, panels = _figure(10, 5, nrows=2, ncols=_SHOWN // 2, squeeze=False)
    moved = ((found.truth - found.truth[:, :1]) / std).square().mean((0, 1))
    lively = moved.argsort(descending=True)[:3].tolist()
    chosen = np.linspace(0, len(found.episode) - 1, _SHOWN).round().astype(int)
    steps = np.arange(1, found.truth.shape[1] + 1)
    for axes, row in zip(panels.flat, chosen.tolist(), strict=True):
        for number, colour in zip(lively, (ACCENT, "#c2571a", "#3c8d5a"), strict=True):
            axes.plot(steps, found.truth[row, :, number], color=colour, linewidth=3, alpha=0.3)
            told = found.states["model"][row, :, number]
            axes.plot(steps, told, color=colour, linewidth=1, linestyle="--")
        error = found.rmse["model"][row]
        _plain(axes, f"RMSE {error.mean():.2f}, at the end {error[-1]:.2f}", "step", "")
    _save(figure, path)

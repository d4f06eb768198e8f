"""Pictures of what generative models make: error maps, strips beside the truth, curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from iwm.evaluation.pictures import ACCENT, MUTED, _figure, _plain, _save, strips

Array = np.ndarray[Any, Any]

ERROR_GAIN = 4
"""Error maps are shown this many times as strong."""


def error_map(made: Tensor, true: Tensor) -> Array:
    """Absolute differences, amplified and clamped: uint8 [H, W, 3] each -> uint8 [H, W, 3]."""
    difference = (made.int() - true.int()).abs() * ERROR_GAIN
    picture: Array = difference.clamp(max=255).byte().cpu().numpy()
    return picture


def histogram(values: Mapping[str, Array], title: str, x: str, path: Path) -> None:
    """Distributions of several arms over one axis."""
    figure, axes = _figure(6, 3.0)
    edges = np.histogram_bin_edges(np.concatenate(list(values.values())), 40)
    for (name, found), colour in zip(values.items(), (ACCENT, MUTED, "#c2571a"), strict=False):
        axes.hist(found, edges, label=name, color=colour, alpha=0.6)
    axes.legend(fontsize=8, frameon=False)
    _plain(axes, title, x, "frames")
    _save(figure, path)


def ranked(counts: Array, title: str, path: Path) -> None:
    """Counts in falling order, both axes logarithmic."""
    figure, axes = _figure(6, 3.0)
    falling = np.sort(counts)[::-1]
    axes.plot(np.arange(1, len(falling) + 1), np.maximum(falling, 0.5), color=ACCENT)
    axes.set_xscale("log")
    axes.set_yscale("log")
    _plain(axes, title, "code", "times used")
    _save(figure, path)


def curves(
    panels: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]], y: str, path: Path
) -> None:
    """Figures over the steps of a dream with 95 % bands: ``{title: {arm: [figure, ...]}}``."""
    figure, found = _figure(4.8 * len(panels), 3.4, ncols=len(panels), squeeze=False, sharey=True)
    colours = (ACCENT, MUTED, "#c2571a", "#7a5195")
    for axes, (title, arms) in zip(found[0], panels.items(), strict=True):
        for (arm, points), colour in zip(arms.items(), colours, strict=False):
            steps = range(1, len(points) + 1)
            axes.plot(steps, [p["mean"] for p in points], color=colour, label=arm.replace("_", " "))
            low, high = ([p[end] for p in points] for end in ("low", "high"))
            axes.fill_between(steps, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.legend(fontsize=7, frameon=False)
        _plain(axes, title, "imagined frame", y)
    _save(figure, path)


def beside(
    context: Tensor, true: Tensor, arms: Mapping[str, Tensor], steps: Sequence[int], path: Path
) -> None:
    """Imagined strips beside the true one, a pair of rows for each window.

    Args:
        context: the last frame given, uint8 [N, H, W, 3].
        true: what came, uint8 [N, K, H, W, 3].
        arms: name -> what was imagined, the same shape.
        steps: which of the K to show, from 1.
        path: of the PNG.
    """
    rows, labels = [], []
    for number in range(len(context)):
        last = context[number].numpy()
        for name, frames in {"true": true, **arms}.items():
            rows.append([last, *(frames[number, step - 1].numpy() for step in steps)])
            labels.append(name)
    strips(rows, ["last seen", *(f"+{step}" for step in steps)], path, labels)

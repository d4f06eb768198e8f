"""Pictures of a run: PNG files drawn with matplotlib's Agg, no display, no network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from iwm.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = np.ndarray[Any, Any]
INK, ACCENT, MUTED = "#1d2733", "#0b6e99", "#9aa5b1"


def _figure(width: float, height: float, **layout: Any) -> tuple[Figure, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(**layout)


def _save(figure: Figure, path: Path) -> None:
    with atomic_path(path) as temporary:
        # No software version in the file: the same figures give the same bytes.
        figure.savefig(temporary, format="png", metadata={"Software": None})


def _plain(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set_title(title, color=INK, fontsize=10, loc="left")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, alpha=0.25)


def as_picture(view: Any) -> Array:
    """A float tensor [3, H, W] in about [0, 1] as uint8 [H, W, 3], clamped."""
    picture: Array = (view.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    return picture


def loss_curve(history: Sequence[dict[str, float]], path: Path) -> None:
    """Total loss and its terms over the steps, and the effective rank beside them."""
    figure, (left, right) = _figure(9, 3.2, ncols=2)
    steps = [row["step"] for row in history]
    left.plot(steps, [row["loss"] for row in history], color=ACCENT, linewidth=2, label="total")
    for name in sorted({key for row in history for key in row if key.startswith("loss_")}):
        values = [row.get(name, np.nan) for row in history]
        left.plot(steps, values, linewidth=0.9, label=name.removeprefix("loss_").replace("_", " "))
    left.legend(fontsize=7, frameon=False)
    _plain(left, "Training loss", "step", "loss")
    right.plot(steps, [row.get("effective_rank", np.nan) for row in history], color=ACCENT)
    _plain(right, "Effective rank of a batch (RankMe)", "step", "dimensions")
    _save(figure, path)


def rank_histogram(reciprocal: dict[str, Array], bank: int, path: Path) -> None:
    """Share of predictions per rank, model against the other arms; log-spaced ranks."""
    figure, axes = _figure(6, 3.2)
    edges = np.unique(np.geomspace(1, bank + 1, 17).round())
    for arm, values in reciprocal.items():
        ranks = 1 / values.ravel()
        share = np.histogram(ranks, edges)[0] / len(ranks)
        style = {"color": ACCENT, "linewidth": 2.2} if arm == "model" else {"linewidth": 1.1}
        axes.stairs(share, edges, label=arm.replace("_", " "), **style)
    axes.set_xscale("log")
    axes.legend(fontsize=8, frameon=False)
    _plain(axes, f"Rank of the true latent among {bank}", "rank (1 is best)", "share")
    _save(figure, path)


def calibration_plot(curves: dict[str, dict[str, Any]], path: Path) -> None:
    """Expected against measured, one panel per curve, with the diagonal."""
    figure, panels = _figure(4 * len(curves), 3.4, ncols=len(curves), squeeze=False)
    for axes, (title, curve) in zip(panels[0], curves.items(), strict=True):
        expected, actual = curve["expected"], curve["actual"]
        low, high = min(expected + actual), max(expected + actual)
        axes.plot([low, high], [low, high], color=MUTED, linewidth=1, linestyle="--")
        axes.plot(expected, actual, color=ACCENT, marker="o", markersize=4)
        _plain(axes, f"{title} (mean gap {curve['ece']:.3f})", "expected", "measured")
    _save(figure, path)


def strips(rows: Sequence[Sequence[Array]], titles: Sequence[str], path: Path) -> None:
    """Rows of pictures, uint8 [H, W, 3], under column titles."""
    columns = len(titles)
    figure, panels = _figure(
        1.5 * columns, 1.3 * len(rows) + 0.3, nrows=len(rows), ncols=columns, squeeze=False
    )
    for line, images in zip(panels, rows, strict=True):
        for axes, image in zip(line, images, strict=True):
            axes.imshow(image)
            axes.set_axis_off()
    for axes, title in zip(panels[0], titles, strict=True):
        axes.set_title(title, fontsize=8, color=INK)
    _save(figure, path)

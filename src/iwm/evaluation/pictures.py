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
    """Total loss and its terms over the steps; effective rank and smallest deviation beside."""
    figure, (left, middle, right) = _figure(12, 3.2, ncols=3)
    steps = [row["step"] for row in history]
    left.plot(steps, [row["loss"] for row in history], color=ACCENT, linewidth=2, label="total")
    for name in sorted({key for row in history for key in row if key.startswith("loss_")}):
        values = [row.get(name, np.nan) for row in history]
        left.plot(steps, values, linewidth=0.9, label=name.removeprefix("loss_").replace("_", " "))
    left.legend(fontsize=7, frameon=False)
    _plain(left, "Training loss", "step", "loss")
    middle.plot(steps, [row.get("effective_rank", np.nan) for row in history], color=ACCENT)
    _plain(middle, "Effective rank of a batch (RankMe)", "step", "dimensions")
    for name, colour in (("mean_std", MUTED), ("min_std", ACCENT)):
        values = [row.get(name, np.nan) for row in history]
        right.plot(steps, values, color=colour, label=name.replace("_std", " over dimensions"))
    right.legend(fontsize=7, frameon=False)
    _plain(right, "Deviation of a latent's dimensions", "step", "standard deviation")
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
        axes.plot(expected, actual, color=ACCENT, marker="o", markersize=4, linestyle="")
        _plain(axes, f"{title} (mean gap {curve['ece']:.3f})", "expected", "measured")
    _save(figure, path)


def error_curves(
    panels: dict[str, dict[str, dict[str, Any]]], arms: Sequence[str], path: Path
) -> None:
    """Error over the steps of a rollout with 95 % bands; a panel for each ``{title: figures}``.

    ``figures`` is ``{k1: {arm: figure}, k2: ...}``.
    """
    figure, found = _figure(4.6 * len(panels), 3.4, ncols=len(panels), squeeze=False, sharey=True)
    colours = (ACCENT, MUTED, "#c2571a", "#7a5195", "#3c8d5a")
    for axes, (title, figures) in zip(found[0], panels.items(), strict=True):
        steps = range(1, len(figures) + 1)
        for arm, colour in zip(arms, colours, strict=False):
            points = [figures[f"k{step}"][arm] for step in steps]
            width = 2.2 if arm == "model" else 1.2
            mean = [point["mean"] for point in points]
            axes.plot(steps, mean, color=colour, linewidth=width, label=arm.replace("_", " "))
            low, high = ([point[end] for point in points] for end in ("low", "high"))
            axes.fill_between(steps, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.set_ylim(bottom=0)
        axes.legend(fontsize=7, frameon=False)
        _plain(axes, title, "step of the rollout, k", "distance to the true latent")
    _save(figure, path)


def roc_plot(curves: dict[str, dict[str, list[float]]], path: Path) -> None:
    """Detections against false alarms for every anomaly, with the diagonal of guessing."""
    figure, axes = _figure(4.6, 4.0)
    axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle="--")
    for name, curve in curves.items():
        axes.plot(curve["false_alarms"], curve["detected"], label=name.replace("_", " "))
    axes.legend(fontsize=8, frameon=False, loc="lower right")
    _plain(axes, "Anomalies told by surprise", "share of false alarms", "share detected")
    _save(figure, path)


def bars(panels: dict[str, dict[str, dict[str, Any]]], path: Path, columns: int = 4) -> None:
    """Figures with their 95 % intervals, one panel for each ``{title: {arm: figure}}``."""
    rows = -(-len(panels) // columns)
    size = {"nrows": rows, "ncols": columns, "squeeze": False}
    figure, found = _figure(3.2 * columns, 2.3 * rows, **size)
    for axes in found.flat[len(panels) :]:
        axes.set_visible(False)
    for axes, (title, arms) in zip(found.flat, panels.items(), strict=False):
        means = np.array([arm["mean"] for arm in arms.values()])
        low, high = (np.array([arm[end] for arm in arms.values()]) for end in ("low", "high"))
        around = np.clip([means - low, high - means], 0, None)
        colours = [ACCENT if place < 2 else MUTED for place in range(len(arms))]
        axes.barh(range(len(arms)), means, xerr=around, color=colours, ecolor=INK, capsize=2)
        axes.set_yticks(range(len(arms)), [name.replace("_", " ") for name in arms], fontsize=7)
        axes.invert_yaxis()
        _plain(axes, title, "", "")
    _save(figure, path)


def areas(
    shares: Array, title: str, path: Path, *, name: str = "", marks: Sequence[float] = ()
) -> None:
    """Shares that sum to one, [T, K], as areas on top of one another over frames.

    Args:
        shares: one column each area.
        title: of the picture.
        path: of the PNG file.
        name: what a column is; those with a share worth seeing are named by it and their number.
        marks: frames before which a new sequence begins.
    """
    from matplotlib import colormaps

    figure, axes = _figure(9, 2.8)
    labels = [
        f"{name} {k}" if name and mean > 0.02 else f"_{k}" for k, mean in enumerate(shares.mean(0))
    ]
    colours = [colormaps["tab20"]((2 * k) % 20 + k // 10) for k in range(shares.shape[1])]
    axes.stackplot(
        range(len(shares)), shares.T, step="mid", colors=colours, labels=labels, linewidth=0
    )
    for mark in marks:
        axes.axvline(mark - 0.5, color=INK, linewidth=1, linestyle="--")
    axes.set_xlim(-0.5, len(shares) - 0.5)
    axes.set_ylim(0, 1)
    if name:
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=7, frameon=False)
    _plain(axes, title, "frame", "share")
    _save(figure, path)


def strips(
    rows: Sequence[Sequence[Array]],
    titles: Sequence[str],
    path: Path,
    labels: Sequence[str] = (),
) -> None:
    """Rows of pictures, uint8 [H, W, 3], under column titles; a label before each row."""
    columns = len(titles)
    figure, panels = _figure(
        1.5 * columns + (1.1 if labels else 0),
        1.3 * len(rows) + 0.3,
        nrows=len(rows),
        ncols=columns,
        squeeze=False,
    )
    for line, images in zip(panels, rows, strict=True):
        for axes, image in zip(line, images, strict=True):
            axes.imshow(image)
            axes.set_axis_off()
    for axes, title in zip(panels[0], titles, strict=True):
        axes.set_title(title, fontsize=8, color=INK)
    for line, label in zip(panels, labels, strict=False):
        place = {"transform": line[0].transAxes, "ha": "right", "va": "center"}
        line[0].text(-0.06, 0.5, label, fontsize=8, color=INK, **place)
    _save(figure, path)

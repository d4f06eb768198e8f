"""Evaluation of the critic of object permanence, as the stage `evaluate` calls it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from iwm.config import Params
from iwm.data.branches import load_branches
from iwm.data.reader import ShardStore
from iwm.evaluation.permanence import ARMS, draw, evaluate
from iwm.evaluation.sequences import read_windows
from iwm.evaluation.statistics import interval
from iwm.files import write_json
from pipelines._stage import BRANCHES
from pipelines._trained import load_fitting_model


def measure(
    phase: str, params: Params, store: ShardStore, folder: Path
) -> tuple[dict[str, Any], list[str]]:
    """Figures, and lines for the terminal; calibration and pictures go into ``folder``."""
    config = params.evaluate[phase]
    model = load_fitting_model(phase, params, store).eval()
    only = params.train[phase].recordings if phase in params.train else None
    sets = load_branches(BRANCHES)
    # Training sees neither split, and chooses nothing by either: both are held out.
    held = read_windows(
        store,
        ("val", "test"),
        store.all_actions(only),
        frames=3,
        count=config.action.windows,
        seed=config.seed,
        recordings=only,
    )
    outcome = evaluate(
        model,
        {name: found for name, found in sets.items() if only is None or name in only},
        held,
        resamples=config.bootstrap,
        seed=config.seed,
    )
    draw(outcome, folder)
    write_json(folder / "calibration.json", outcome.calibration)
    return outcome.metrics, list(_lines(outcome.metrics))


def _lines(metrics: dict[str, Any]) -> Any:
    parts = {"all": metrics["removal"], **metrics["removal_of"], **metrics["removal_by_size"]}
    for name, arms in parts.items():
        found = ", ".join(f"{arm} {interval(arms[arm])}" for arm in ARMS)
        yield f"AUROC of an object taken away, {name}: {found}"
    points = metrics["points"]
    yield f"points at it: {interval(points['model'])}, chance {points['chance']['mean']:.3f}"
    yield f"ordinary play's 95th percentile (2 wanted): {interval(metrics['p95'])}"

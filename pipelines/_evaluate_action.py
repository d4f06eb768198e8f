"""Evaluation of an action-conditioned model (Phase 3), as the stage `evaluate` calls it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from iwm.config import Params
from iwm.data.branches import load_branches
from iwm.data.reader import ShardStore
from iwm.evaluation.action import evaluate
from iwm.evaluation.action_pictures import draw
from iwm.evaluation.play import read_play
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
    # Training sees neither split, and chooses nothing by either: both are held out.
    held = [
        play
        for split in ("val", "test")
        for play in read_play(store, split, model, config.action.frames, only)
    ]
    # Play that was imported has no simulator to branch: then there are no sets.
    sets = load_branches(BRANCHES) if any(BRANCHES.glob("[!.]*")) else {}
    chosen = [found for name, found in sets.items() if only is None or name in only]
    outcome = evaluate(model, held, chosen, config)
    draw(model, outcome, config.bank, folder)
    write_json(folder / "calibration.json", outcome.calibration)
    return outcome.metrics, list(_lines(outcome.metrics, model.latent_dim))


def _lines(metrics: dict[str, Any], latent_dim: int) -> Any:
    for name, modes in metrics["counterfactual"].items():
        for mode, arms in modes.items():
            hit = arms["hit_at_1"]["mean"]
            yield (
                f"counterfactual {name}, {mode.replace('_', ' ')}: {interval(arms['model'])}, "
                f"hit@1 {hit:.3f} (chance {arms['chance']['mean']:.3f}, "
                f"copy last {arms['copy_last']['mean']:.3f})"
            )
    steps = metrics["rollout"]
    for key in (next(iter(steps)), list(steps)[-1]):
        arms = steps[key]
        beside = ", ".join(
            f"{arm.replace('_', ' ')} {arms[arm]['mean']:.2f}"
            for arm in ("copy_last", "wrong_action", "no_action")
        )
        yield f"rollout error at k = {key[1:]}: {interval(arms['model'])} ({beside})"
    arms = metrics["temporal"]["single"]
    yield (
        f"temporal: {interval(arms['model'])} (chance {arms['chance']['mean']:.3f}, "
        f"copy last {arms['copy_last']['mean']:.3f})"
    )
    found = metrics["surprise"]["single"]
    yield f"surprise, 95th percentile (2 wanted): {interval(found['p95'])}"
    for name, figure in found["auroc"].items():
        yield f"AUROC of {name.replace('_', ' ')}: {interval(figure)}"
    rank = metrics["collapse"]["effective_rank"]["mean"]
    yield f"effective rank: {rank:.1f} of {latent_dim}"

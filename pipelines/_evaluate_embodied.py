"""Evaluation of a world model on vector states, as the stage `evaluate` calls it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from iwm.agents.codec import TrajectoryCodec
from iwm.config import Params
from iwm.data.reader import ShardStore
from iwm.evaluation.statistics import constant, interval
from iwm.evaluation.trajectories import ARMS, calibration, figures, foretell
from iwm.evaluation.trajectory_pictures import draw
from iwm.files import write_json
from iwm.models.registry import load_model
from iwm.training.distributed import choose_device
from pipelines._intentions import measure_intentions
from pipelines._stage import MODELS
from pipelines._train_trajectories import open_store


def measure(
    phase: str,
    params: Params,
    store: ShardStore,  # noqa: ARG001 - its episodes are those of another set
    folder: Path,
) -> tuple[dict[str, Any], list[str]]:
    """Figures, and lines for the terminal; calibration and pictures go into ``folder``."""
    config = params.evaluate[phase]
    trajectories = open_store(phase, params)
    model = load_model(MODELS / phase).to(choose_device(params.train[phase].device)).eval()
    found = foretell(model, trajectories, config.split, config.trajectories)
    metrics = figures(found, config.trajectories, config.bootstrap, config.seed)
    codec = TrajectoryCodec.load(MODELS / phase)
    metrics["intentions"], said = measure_intentions(
        model, codec, trajectories, config.split, seed=config.seed
    )
    draw(found, trajectories, model.state_std.cpu(), config.trajectories, folder)
    write_json(folder / "calibration.json", {"uncertainty": calibration(found)})
    facts = {
        "data_revision": trajectories.info.revision,
        "source": trajectories.info.source,
        "episodes": constant(float(len(set(found.episode.tolist()))), len(found.episode)),
    }
    return {**facts, **metrics}, [*_lines(metrics, config.trajectories.bound), said]


def _lines(metrics: dict[str, Any], bound: float) -> Any:
    model, *others = ARMS
    beside = ", ".join(
        f"{arm.replace('_', ' ')} {metrics['accuracy'][arm]['mean']:.3f}" for arm in others
    )
    yield (
        f"steps foretold within {bound:g} deviations: "
        f"{interval(metrics['accuracy'][model])} ({beside})"
    )
    for name, arms in metrics["accuracy_at"].items():
        errors = metrics["rmse_at"][name]
        yield (
            f"k = {name[1:]}: {interval(arms[model])}; RMSE "
            + ", ".join(f"{arm.replace('_', ' ')} {errors[arm]['mean']:.3f}" for arm in ARMS)
        )
    told = metrics["uncertainty"]
    yield (
        f"RMSE expected {told['expected']['mean']:.3f}, measured {told['measured']['mean']:.3f}, "
        f"rank correlation {interval(told['correlation'])}"
    )

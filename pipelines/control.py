"""Stage `control`: goals to reach in the real game, by planning with the world model."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from pipelines._stage import EVALUATION, MODELS, REPORTS, SHARDS, run, share_processors

ARMS = ("model", "oracle", "cloning", "random")


def control(
    name: Annotated[str, typer.Argument(help="an entry under `control` in params.yaml")],
) -> None:
    """Reach goals with plans, against chance, imitation and the true game.

    Writes reports/metrics/control-NAME.json.
    """
    from contextlib import closing

    from iwm.config import load_params
    from iwm.errors import ConfigError, ModelError

    params = load_params()
    if name not in params.control:
        raise ConfigError(f"control.{name}: not in params.yaml; it has {', '.join(params.control)}")
    config = params.control[name]
    plans = {plan.name: plan for plan in params.record.plans}
    if config.plan not in plans:
        raise ConfigError(
            f"control.{name}.plan: no plan {config.plan!r} in record.plans; it has "
            f"{', '.join(plans)}"
        )

    share_processors()
    from iwm.data.reader import ShardStore
    from iwm.evaluation.control import control as measure
    from iwm.files import atomic_directory, write_json
    from iwm.gameplay.sources import open_branching
    from iwm.models.registry import load_model
    from pipelines._provenance import git_commit

    folder = MODELS / config.phase
    model = load_model(folder)
    if not hasattr(model, "rollout"):
        raise ModelError(f"{folder}: has no action-conditioned rollout; control needs one")
    store = ShardStore(SHARDS)
    play = recorded(model, store, config.recordings or (config.plan,))
    plan = plans[config.plan]
    with closing(open_branching(plan)) as source:
        measured = measure(model, source, plan, play, config)
    with atomic_directory(EVALUATION / f"control-{name}") as temporary:
        measured.distance.save_pretrained(temporary / "distance")
    write_json(
        REPORTS / "metrics" / f"control-{name}.json",
        {
            "control": name,
            "profile": params.profile,
            "commit": git_commit(),
            "data_revision": store.info.revision,
            "phase": config.phase,
            **measured.figures,
        },
    )
    for arm in ARMS:
        if arm in measured.figures:
            typer.echo(line(arm, measured.figures[arm]))
    for other in ("random", "cloning"):
        above = measured.figures["model"][f"above_{other}"]
        typer.echo(
            f"model above {other}, same tasks: {above['mean']:+.3f} "
            f"[{above['low']:+.3f}, {above['high']:+.3f}]"
        )


def line(arm: str, figures: dict[str, Any]) -> str:
    """One arm's figures for people."""
    success, ratio = figures["success"], figures.get("path_ratio")
    path = f", path {ratio['mean']:.2f} x shortest" if ratio else ""
    return (
        f"{arm}: success {success['mean']:.3f} [{success['low']:.3f}, {success['high']:.3f}] of "
        f"{success['n']}{path}, {figures['decision_ms']['mean']:.0f} ms a decision, "
        f"{figures['task_s']['mean']:.2f} s a task"
    )


def recorded(model: Any, store: Any, recordings: tuple[str, ...]) -> Any:
    """Training play of some recordings, encoded.

    Args:
        model: an action-conditioned model.
        store: the shards.
        recordings: which.
    """
    import numpy as np
    import torch

    from iwm.evaluation.control import Recorded
    from iwm.progress import Progress

    rows = store.rows("train", recordings)
    order = np.lexsort(
        (
            store.table["step"].to_numpy()[rows],
            store.table["episode"].to_numpy()[rows],
            store.recording_ids[rows],
        )
    )
    rows = rows[order]
    device = next(model.parameters()).device
    latents = []
    with Progress("encode", len(rows), "frames") as progress:
        for part in np.array_split(rows, max(1, len(rows) // 256)):
            images = torch.from_numpy(store.decode(part)).permute(0, 3, 1, 2)
            latents.append(model.encode(images.to(device))[0].cpu())
            progress.advance(len(part))
    # A frame that was set aside ends a stretch of play as the end of an episode does.
    step = store.table["step"].to_numpy()[rows].astype(np.int64)
    episode = store.table["episode"].to_numpy()[rows]
    same = (np.diff(store.recording_ids[rows]) == 0) & (np.diff(episode) == 0)
    stretch = np.concatenate([[0], np.cumsum(~(same & (np.diff(step) == 1)))])
    actions = store.actions(model.vocabulary, recordings)[rows]
    return Recorded(torch.cat(latents), actions, stretch)


if __name__ == "__main__":
    run(control)

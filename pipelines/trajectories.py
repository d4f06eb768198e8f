"""Stage `trajectories`: vectors for world models, from a simulator or from encoded play."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipelines._stage import DATA, SHARDS, TRAJECTORIES, run, share_processors

if TYPE_CHECKING:
    from iwm.config import Params
    from iwm.data.config import TrajectoryPlan
    from iwm.data.trajectories import Episode


def trajectories(
    name: Annotated[str, typer.Argument(help="an entry under `trajectories` in params.yaml")],
) -> None:
    """Make the set NAME: states, actions and rewards, by episode, some held out."""
    from iwm.config import load_params
    from iwm.errors import ConfigError

    params = load_params()
    if name not in params.trajectories:
        raise ConfigError(
            f"trajectories.{name}: not in params.yaml; it has {', '.join(params.trajectories)}"
        )
    plan = params.trajectories[name]

    share_processors()
    from iwm.data.trajectories import write_trajectories
    from iwm.files import only_one

    with only_one(TRAJECTORIES / name):
        episodes, facts = _SOURCES[plan.source](params, plan)
        made = write_trajectories(TRAJECTORIES / name, episodes, plan.split, plan.source, **facts)
    counts = {
        split: sum(item.split == split for item in made.episodes)
        for split in ("train", "val", "test")
    }
    typer.echo(
        f"trajectories {name}: {sum(item.states for item in made.episodes):,} states of "
        f"{made.state_dim} numbers, {made.action_dim} of an action; episodes "
        + ", ".join(f"{split} {count:,}" for split, count in counts.items())
    )


def _particles(_: Params, plan: TrajectoryPlan) -> tuple[list[Episode], dict[str, Any]]:
    from iwm.data import particles

    bodies = plan.particles.bodies
    return particles.simulate(plan.particles), {
        "state_names": particles.state_names(bodies),
        "velocities": particles.velocities(bodies),
        "step_s": particles.STEP_S,
    }


def _truth(params: Params, plan: TrajectoryPlan) -> tuple[list[Episode], dict[str, Any]]:
    from iwm.data.sprites import read_truth

    return read_truth(DATA, plan.recordings, params.ingest.split)


def _latents(params: Params, plan: TrajectoryPlan) -> tuple[list[Episode], dict[str, Any]]:
    from iwm.data.reader import ShardStore
    from iwm.errors import ConfigError
    from iwm.evaluation.encoded import encode_episodes
    from pipelines._trained import load_fitting_model

    store = ShardStore(SHARDS)
    trained = params.train.get(plan.phase)
    recordings = plan.recordings or (trained.recordings if trained else None)
    model = load_fitting_model(plan.phase, params, store).eval()
    if not getattr(model, "vocabulary", ()):
        raise ConfigError(f"trajectories: {plan.phase} names no actions; its play has none to use")
    episodes = [
        episode
        for split, frames in (
            ("train", plan.frames),
            ("val", plan.frames // 8),
            ("test", plan.frames // 8),
        )
        for episode in encode_episodes(store, split, model, frames, recordings)
    ]
    return episodes, {"vocabulary": model.vocabulary}


_SOURCES = {"particles": _particles, "truth": _truth, "latents": _latents}


if __name__ == "__main__":
    run(trajectories)

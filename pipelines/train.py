"""Stage `train`: one phase, from the shards to a model; goes on where it was stopped."""

from __future__ import annotations

import os
import sys
from contextlib import nullcontext
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from pipelines._stage import MODELS, REMOVALS, SHARDS, run, share_processors

if TYPE_CHECKING:
    from iwm.config import Params
    from iwm.training.trainer import Summary

ACTING = ("action", "vqvae-dynamics", "vrnn")
"""Models that are told the game's actions by name."""


def train(
    phase: Annotated[str, typer.Argument(help="an entry under `train` in params.yaml")],
    processes: Annotated[
        int,
        typer.Option(
            envvar="IWM_PROCESSES",
            min=1,
            help="Processes on each machine, one an accelerator; the same global batch.",
        ),
    ] = 1,
    nodes: Annotated[
        int,
        typer.Option(
            envvar="IWM_NODES",
            min=1,
            help="Machines: this one and others of the Dask cluster, unless --head is given.",
        ),
    ] = 1,
    head: Annotated[
        str | None,
        typer.Option(
            envvar="IWM_HEAD",
            help="HOST:PORT of the first machine, when each is started by hand.",
        ),
    ] = None,
) -> None:
    """Train PHASE on the shards into artifacts/models/PHASE.

    Run it again after any stop, a kill included: it goes on from its last checkpoint. On several
    machines: `--nodes N` here, with a Dask worker on each; or `--nodes N --head HOST:PORT` on each.
    """
    from iwm.config import load_params
    from iwm.errors import ConfigError
    from iwm.files import only_one

    params = load_params()
    if phase not in params.train:
        raise ConfigError(f"train.{phase}: not in params.yaml; it has {', '.join(params.train)}")
    config = params.train[phase]

    if "RANK" in os.environ:
        from iwm.gameplay.executor import end_with_parent

        end_with_parent(os.getppid())  # a killed torchrun leaves nothing behind
    elif processes > 1 or nodes > 1:
        spread(phase, processes, nodes, head)
    share_processors()
    with only_one(MODELS / phase) if os.environ.get("RANK", "0") == "0" else nullcontext():
        if config.trajectories is not None:
            from pipelines._train_trajectories import train_trajectories

            summary = train_trajectories(phase, params)
        else:
            summary = _train_on_shards(phase, params)
    _tell(phase, summary)


def _train_on_shards(phase: str, params: Params) -> Summary | None:
    """Train a phase on the shards; returns how it went, in the first process."""
    import torch

    from iwm.data.loader import Loader
    from iwm.data.reader import ShardStore
    from iwm.errors import ConfigError
    from iwm.models.registry import create_model
    from iwm.monitoring.training import MetricsTracker
    from iwm.training.distributed import ranks
    from iwm.training.trainer import Trainer
    from pipelines._provenance import dvc_data_revision, git_commit
    from pipelines._tracking import MlflowTracker

    config = params.train[phase]
    store = ShardStore(SHARDS)
    settings = dict(config.model)
    name = settings.pop("name", None)
    if not isinstance(name, str):
        raise ConfigError(f"train.{phase}.model.name: missing")
    size = list(store.image_shape[:2])
    if list(settings.setdefault("image_size", size)) != size:
        raise ConfigError(
            f"train.{phase}.model.image_size is {list(settings['image_size'])}, the shards in "
            f"{SHARDS} hold {size} (height, width); change one of them"
        )
    settings.setdefault("fit", store.info.fit)
    vocabulary = _actions(name, settings, store, config.recordings) if name in ACTING else None
    if name == "vqvae-dynamics":
        settings["tokenizer"] = _tokenizer(config.init_from, phase)
    out = MODELS / phase
    commit, dvc_revision = git_commit(), dvc_data_revision()
    with ranks(config.device) as place:
        batches = Loader(
            store,
            "train",
            config.batch_size,
            config.seed,
            window=config.window,
            recordings=config.recordings,
            vocabulary=vocabulary,
            rank=place.rank,
            world=place.world,
            workers=config.loader.workers,
            prefetch=config.loader.prefetch,
            pin_memory=place.device.type != "cpu",
        )
        torch.manual_seed(config.seed)
        model = create_model(name, **settings)
        trained_on = store.info.revision
        if config.init_from is not None:
            trained_on += f"+{_start_from(config.init_from, phase, model)}"
        if config.removals:
            trained_on += _take_away(model, phase, config.recordings)
        tracker = MlflowTracker(
            params.register.experiment,
            phase,
            out,
            {
                "profile": params.profile,
                "mlflow.source.git.commit": commit,
                "data.shards_revision": store.info.revision,
                "data.dvc_revision": dvc_revision,
                "device": place.device,
            },
        )
        trainer = Trainer(
            model,
            config,
            batches,
            out,
            place,
            data_revision=trained_on,
            trackers=[tracker, MetricsTracker(phase, out)],
            name=phase,
        )

        def record() -> dict[str, Any]:
            from iwm.evaluation.pictures import loss_curve
            from iwm.training.tracking import read_history

            for path in _pictures(phase, model, batches):
                tracker.picture(path)
            loss_curve(read_history(out / "history.jsonl"), out / "loss.png")
            tracker.picture(out / "loss.png")
            return {
                "run_id": tracker.run_id,
                "profile": params.profile,
                "commit": commit,
                "data_revision": store.info.revision,
                "dvc_revision": dvc_revision,
                "vocabulary": {item: store.vocabulary(item) for item in store.recordings},
                "parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
                "device": str(place.device),
            }

        summary = trainer.fit(record)
        return summary if place.first else None


def _tell(phase: str, summary: Summary | None) -> None:
    """Say how training went, in the process that has a summary."""
    if summary is None:
        return
    state = "already done" if summary.already_done else "done"
    loss = summary.metrics.get("loss", float("nan"))
    typer.echo(
        f"train {phase}: {state}, {summary.steps} steps, loss {loss:.4f}, "
        f"{summary.samples_per_second:,.0f} samples/s"
    )


def spread(phase: str, processes: int, nodes: int, head: str | None) -> NoReturn:
    """Go on as several processes, started by torchrun here and on every other host."""
    from pipelines import _torchrun

    sys.stdout.flush()
    if nodes > 1 and head is None:
        from pipelines._hosts import train_on_cluster

        train_on_cluster(phase, processes, nodes)
    words = _torchrun.command(_torchrun.arguments(phase, processes, nodes, head))
    os.execv(words[0], words)


def _actions(
    name: str, settings: dict[str, Any], store: Any, recordings: tuple[str, ...] | None
) -> tuple[str, ...]:
    """Fill in the actions that the data has; returns the vocabulary."""
    names = store.all_actions(recordings)
    settings["vocabulary"] = list(settings.get("vocabulary") or names)
    if name in ("action", "vrnn"):
        vectors = store.action_vectors
        settings.setdefault("action_dim", 0 if vectors is None else vectors.shape[1])
    return tuple(settings["vocabulary"])


def _take_away(model: Any, phase: str, recordings: tuple[str, ...] | None) -> str:
    """Let a critic learn from what engines took away; what that adds to the data's revision."""
    from iwm.data.removals import load_removals
    from iwm.errors import ConfigError
    from iwm.models.permanence import ObjectPermanence

    if not isinstance(model, ObjectPermanence):
        raise ConfigError(f"train.{phase}.removals: only the model permanence learns from them")
    found = load_removals(REMOVALS, recordings)
    model.learn_from(found)
    return "".join(f"+{each.digest()}" for each in found)


def _tokenizer(earlier: str | None, phase: str) -> dict[str, Any]:
    """The shape of the tokenizer in whose tokens the dynamics predict."""
    from iwm.errors import ConfigError, ModelError
    from iwm.models.saving import read_config

    if earlier is None:
        raise ConfigError(f"train.{phase}.init_from: name the phase that trained the tokenizer")
    try:
        shape: dict[str, Any] = read_config(MODELS / earlier, "vqvae")["settings"]
    except ModelError as error:
        raise ConfigError(
            f"train.{phase}.init_from: {error}; run `iwm train {earlier}` first"
        ) from None
    return shape


def _start_from(earlier: str, phase: str, model: Any) -> str:
    """Give ``model`` the weights of an earlier phase; returns their name, for the checkpoint."""
    from iwm.errors import ConfigError, ModelError
    from iwm.models.transfer import start_from
    from pipelines._registry import sha256

    folder = MODELS / earlier
    weights = folder / "model.safetensors"
    if earlier == phase:
        raise ConfigError(f"train.{phase}.init_from: a phase cannot start from itself")
    if not weights.is_file():
        raise ConfigError(
            f"train.{phase}.init_from: {weights} not found; run `iwm train {earlier}` first"
        )
    try:
        start_from(model, folder)
    except ModelError as error:
        raise ConfigError(f"train.{phase}.init_from: {earlier} does not fit: {error}") from None
    return f"{earlier}@{sha256(weights)[:16]}"


def _pictures(phase: str, model: Any, batches: Any) -> list[Any]:
    """What the model meets in training: pairs of views of a frame, or windows of frames."""
    import torch

    from iwm.data.augment import make_views, sample_views
    from iwm.data.config import AugmentConfig
    from iwm.evaluation.pictures import as_picture, strips

    windows = next(batches.epoch(0)).images[:6]
    augment = getattr(model.config, "augment", None)
    if isinstance(augment, AugmentConfig):
        images = windows[:, 0]
        drawn = sample_views(len(images), augment, torch.Generator().manual_seed(0))
        rows = list(zip(images / 255, *make_views(images, drawn), strict=True))
        path, titles = MODELS / phase / "views.png", ["frame", "source view", "target view"]
    else:
        rows = [tuple(window / 255) for window in windows]
        path = MODELS / phase / "windows.png"
        titles = [f"step {step}" for step in range(windows.shape[1])]
    strips([[as_picture(view) for view in row] for row in rows], titles, path)
    return [path]


if __name__ == "__main__":
    run(train)

"""Training on a set of trajectories, as the stage `train` calls it for phases that name one."""

from __future__ import annotations

from typing import Any

import torch

from iwm.config import Params
from iwm.data.trajectories import TrajectoryLoader, TrajectoryStore
from iwm.errors import ConfigError
from iwm.models.registry import create_model
from iwm.monitoring.training import MetricsTracker
from iwm.training.distributed import ranks
from iwm.training.trainer import Summary, Trainer
from pipelines._intentions import fit_codec
from pipelines._provenance import dvc_data_revision, git_commit
from pipelines._stage import MODELS, TRAJECTORIES
from pipelines._tracking import MlflowTracker

WINDOWS_APART = 4
"""Training windows begin every so-many-th of a window."""


def open_store(phase: str, params: Params) -> TrajectoryStore:
    """The set of trajectories that a phase trains on.

    Raises:
        ConfigError: the phase names none.
        DataError: the set is missing or damaged.
    """
    name = params.train[phase].trajectories
    if name is None:
        raise ConfigError(f"train.{phase}.trajectories: names no set to train on")
    return TrajectoryStore(TRAJECTORIES / name)


def model_settings(settings: dict[str, Any], store: TrajectoryStore, where: str) -> dict[str, Any]:
    """A model's settings with the set's own widths and names filled in.

    Raises:
        ConfigError: a width that the settings give is not the set's.
    """
    info = store.info
    own = {"state_dim": info.state_dim, "action_dim": info.action_dim}
    for key, value in own.items():
        if settings.get(key, value) != value:
            raise ConfigError(f"{where}.{key} is {settings[key]}, {store.folder} holds {value}")
    names = {"state_names": info.state_names, "vocabulary": info.vocabulary}
    return {**settings, **own, **names}


def train_trajectories(phase: str, params: Params) -> Summary | None:
    """Train a phase on its set; returns how it went, in the first process.

    Raises:
        ConfigError: settings that do not fit the set.
        DataError: the set is missing, damaged, or too small.
        TrainingError: the loss is not finite, or the process was asked to stop.
    """
    config = params.train[phase]
    store = open_store(phase, params)
    settings = dict(config.model)
    name = settings.pop("name", None)
    if not isinstance(name, str):
        raise ConfigError(f"train.{phase}.model.name: missing")
    settings = model_settings(settings, store, f"train.{phase}.model")
    out = MODELS / phase
    commit, dvc_revision = git_commit(), dvc_data_revision()
    with ranks(config.device) as place:
        batches = TrajectoryLoader(
            store,
            "train",
            config.batch_size,
            config.seed,
            window=config.window,
            stride=max(1, config.window // WINDOWS_APART),
            rank=place.rank,
            world=place.world,
        )
        torch.manual_seed(config.seed)
        model: Any = create_model(name, **settings)
        model.normalise_by(*store.statistics())
        facts = {
            "profile": params.profile,
            "mlflow.source.git.commit": commit,
            "data.trajectories_revision": store.info.revision,
            "data.dvc_revision": dvc_revision,
            "device": place.device,
        }
        tracker = MlflowTracker(params.register.experiment, phase, out, facts)
        trainer = Trainer(
            model,
            config,
            batches,
            out,
            place,
            data_revision=store.info.revision,
            trackers=[tracker, MetricsTracker(phase, out)],
            name=phase,
        )

        def record() -> dict[str, Any]:
            from iwm.evaluation.pictures import loss_curve
            from iwm.training.tracking import read_history

            loss_curve(read_history(out / "history.jsonl"), out / "loss.png")
            tracker.picture(out / "loss.png")
            fit_codec(model, store, seed=config.seed).save(out)
            return {
                "run_id": tracker.run_id,
                "profile": params.profile,
                "commit": commit,
                "data_revision": store.info.revision,
                "dvc_revision": dvc_revision,
                "vocabulary": {store.info.source: list(store.info.vocabulary)},
                "parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
                "device": str(place.device),
            }

        summary = trainer.fit(record)
        return summary if place.first else None

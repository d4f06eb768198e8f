"""Evaluation of a variational recurrent world model, as the stage `evaluate` calls it: beside
the same network with a single Gaussian prior, which was trained alike."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from iwm.config import Params
from iwm.data.batch import Batch
from iwm.data.reader import ShardStore
from iwm.errors import ConfigError
from iwm.evaluation import aime
from iwm.evaluation.aime_pictures import draw
from iwm.evaluation.statistics import interval
from iwm.files import write_json
from iwm.training.config import TrainConfig
from pipelines._trained import load_fitting_model

QUANTILES = (0.5, 0.95, 0.99)
ALIKE = (
    "init_from",
    "epochs",
    "max_steps",
    "batch_size",
    "window",
    "recordings",
    "seed",
    "precision",
    "optim",
)
"""What a model's training and its twin's have in common, beside the model."""


def measure(
    phase: str, params: Params, store: ShardStore, folder: Path
) -> tuple[dict[str, Any], list[str]]:
    """Figures, and lines for the terminal; calibration and pictures go into ``folder``."""
    config = params.evaluate[phase]
    twin = config.vrnn.single
    for name in (phase, twin):
        if name not in params.train:
            raise ConfigError(f"evaluate.{phase}: train.{name} is not in params.yaml")
    model, single = (load_fitting_model(name, params, store).eval() for name in (phase, twin))
    if unlike := _unlike(params.train[phase], params.train[twin]):
        raise ConfigError(
            f"evaluate.{phase}: train.{twin}.{unlike} differs from train.{phase}.{unlike}; "
            f"bounds compare priors only where all else is alike"
        )
    held = _windows(store, params, phase, model, config.vrnn.windows, config.batch_size)
    figures = aime.measure(
        model,
        single,
        held,
        horizon=config.vrnn.horizon,
        samples=config.vrnn.kl_samples,
        draws=config.vrnn.draws,
        resamples=config.bootstrap,
        seed=config.seed,
    )
    surprise = figures.pop("surprise")
    write_json(
        folder / "calibration.json",
        {"kl_z": {str(q): float(np.quantile(surprise, q)) for q in QUANTILES}},
    )
    [shown] = _windows(store, params, phase, model, 3, 3)
    draw(model, shown, folder, horizon=config.vrnn.horizon, seed=config.seed)
    return figures, list(_lines(figures))


def _unlike(one: TrainConfig, other: TrainConfig) -> str | None:
    """A setting, but for the number of components, in which two trainings differ."""
    for name in ALIKE:
        if getattr(one, name) != getattr(other, name):
            return name
    for name in sorted({*one.model, *other.model} - {"max_components"}):
        if one.model.get(name) != other.model.get(name):
            return f"model.{name}"
    return None


def _windows(
    store: ShardStore, params: Params, phase: str, model: Any, count: int, batch_size: int
) -> list[Batch]:
    """``count`` windows, spread over the held-out play."""
    trained = params.train[phase]
    return aime.held_out_windows(
        store,
        params.evaluate[phase].split,
        window=trained.window,
        recordings=trained.recordings,
        vocabulary=model.vocabulary,
        count=count,
        batch_size=batch_size,
    )


def _lines(figures: dict[str, Any]) -> Iterator[str]:
    bound, ahead = figures["elbo"], figures["open_loop"]
    yield (
        f"held-out ELBO over a single Gaussian prior, nats a frame: {interval(bound['gain'])} "
        f"(in the KL of z {interval(bound['gain_kl_z'])})"
    )
    yield f"effective components: {interval(figures['effective_components'])}"
    rebuilt = figures["reconstruction"]
    yield f"reconstructions: {interval(rebuilt['psnr'])} dB, SSIM {interval(rebuilt['ssim'])}"
    yield (
        f"open loop over copying the last frame, moving pixels, dB: {interval(ahead['gain'])}; "
        f"over wrong actions {interval(ahead['gain_wrong_action'])}"
    )

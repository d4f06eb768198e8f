"""The evaluation of an image world model: figures, calibration, pictures."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from iwm.data.augment import jitter, to_float
from iwm.evaluation.abstraction import abstraction_figures, moves
from iwm.evaluation.calibration import (
    SURPRISE_THRESHOLD,
    apply_table,
    calibrate,
    calibration_curve,
)
from iwm.evaluation.collapse import collapse_figures
from iwm.evaluation.config import EvaluateConfig
from iwm.evaluation.latents import encoder_of, pixels, random_encoder
from iwm.evaluation.pictures import as_picture, calibration_plot, rank_histogram, strips
from iwm.evaluation.retrieval import ARMS, Retrieval, augmentation_retrieval
from iwm.evaluation.statistics import Figure, bootstrap_mean, chance_mrr, constant
from iwm.models.iwm import IWM

Array = np.ndarray[Any, Any]

# Name in the metrics report -> mode of the retrieval.
REPORTED = {"mrr": "with_patches", "mrr_cls_only": "cls_only", "mrr_patches": "patches"}
_STRIPS = 6


@dataclass(frozen=True)
class Frames:
    """Frames of one split: ``images`` uint8 [N, 3, H, W], ``episode`` [N] labels."""

    images: Tensor
    episode: Array


@dataclass(frozen=True)
class Evaluation:
    """``metrics`` for the report, ``calibration`` for serving, what the pictures need."""

    metrics: dict[str, Any]
    calibration: dict[str, Any]
    test: Retrieval
    curves: dict[str, dict[str, Any]]


def evaluate(
    model: IWM, test: Frames, val: Frames, many: Frames, config: EvaluateConfig
) -> Evaluation:
    """Measure a model on ``test`` frames; fit its calibration on ``val`` frames.

    Intervals are bootstrapped over episodes. Episodes of test and val must be disjoint;
    ``many`` are more of the test split's frames, for the collapse figures alone.
    """
    model.eval()
    measured = _retrieve(model, test, config, config.seed, "evaluate: test")
    fitted = _retrieve(model, val, config, config.seed + 1, "evaluate: calibrate")
    root = math.sqrt(model.latent_dim)

    def tables(mode: str) -> dict[str, Any]:
        return calibrate(
            fitted.predicted_error[mode].ravel(),
            fitted.error[mode].ravel() * root,
            fitted.reciprocal[mode]["model"].ravel(),
        )

    # A client that holds z_cls alone is the usual one: its tables stand at the top.
    calibration = {**tables("cls_only"), "with_patches": tables("with_patches")}

    def figure(values: Array) -> Figure:
        clusters = np.repeat(test.episode, values.shape[1])
        return bootstrap_mean(
            values.ravel(), clusters, resamples=config.bootstrap, seed=config.seed
        )

    metrics: dict[str, Any] = {}
    for name, mode in REPORTED.items():
        arms = measured.reciprocal[mode]
        metrics[name] = {arm: figure(arms[arm]) for arm in ARMS}
        metrics[name]["chance"] = constant(chance_mrr(config.bank), arms["model"].size)
        metrics[name]["hit_at_1"] = figure((arms["model"] == 1).astype(float))
    metrics["collapse"] = _collapse(model, many, config)
    metrics["abstraction"] = _abstraction(model, many, config)
    metrics["error"] = {
        mode: figure(measured.error[mode] * root) for mode in ("cls_only", "with_patches")
    }

    distance = measured.error["cls_only"] * root
    predicted = measured.predicted_error["cls_only"]
    error_table, confidence_table = calibration["error"], calibration["confidence"]
    uncertainty = apply_table(predicted, error_table["predicted"], error_table["measured"])
    confidence = apply_table(uncertainty, confidence_table["error"], confidence_table["mrr"])
    curves = {
        "Confidence (reciprocal rank)": calibration_curve(
            confidence.ravel(), measured.reciprocal["cls_only"]["model"].ravel()
        ),
        "Uncertainty (distance)": calibration_curve(uncertainty.ravel(), distance.ravel()),
    }
    surprise = distance * calibration["surprise_scale"]
    names = ("confidence", "uncertainty")
    metrics["calibration"] = {
        **{
            f"{name}_gap": constant(curve["ece"], distance.size)
            for name, curve in zip(names, curves.values(), strict=True)
        },
        "surprise_above_threshold": figure((surprise > SURPRISE_THRESHOLD).astype(float)),
        "surprise_p95": constant(float(np.quantile(surprise, 0.95)), surprise.size),
    }
    metrics["data"] = {"images": len(test.images), "episodes": len(np.unique(test.episode))}
    return Evaluation(metrics, calibration, measured, curves)


def draw(evaluation: Evaluation, frames: Frames, config: EvaluateConfig, folder: Path) -> None:
    """Rank histogram, calibration curves and nearest-neighbour strips into ``folder``."""
    test = evaluation.test
    rank_histogram(test.reciprocal["cls_only"], config.bank, folder / "ranks.png")
    calibration_plot(evaluation.curves, folder / "calibration.png")
    rows = []
    for i in range(min(_STRIPS, len(frames.images))):
        image = frames.images[i : i + 1]
        wanted, found = test.jitters[i][0], test.jitters[i][test.nearest[i][0]]
        views = (jitter(to_float(image), torch.as_tensor(p)[None])[0] for p in (wanted, found))
        rows.append([as_picture(to_float(image)[0]), *(as_picture(view) for view in views)])
    strips(rows, ("source", "target", "nearest to prediction"), folder / "neighbours.png")


def _retrieve(
    model: IWM, frames: Frames, config: EvaluateConfig, seed: int, label: str
) -> Retrieval:
    return augmentation_retrieval(
        model,
        frames.images,
        config.augment,
        bank=config.bank,
        queries=config.queries,
        seed=seed,
        label=label,
    )


@torch.no_grad()
def _collapse(model: IWM, frames: Frames, config: EvaluateConfig) -> dict[str, Figure]:
    device = next(model.parameters()).device
    chunks = torch.split(frames.images, config.batch_size)
    latents = torch.cat([model.encode(chunk.to(device))[0].cpu() for chunk in chunks])
    return collapse_figures(latents, frames.episode, config.seed)


def _abstraction(model: IWM, frames: Frames, config: EvaluateConfig) -> dict[str, Figure]:
    """The abstraction index beside that of the untrained encoder and of the image itself."""
    encoders = {
        "model": encoder_of(model, config.batch_size),
        "random_encoder": random_encoder(model, config.seed, config.batch_size),
        "pixels": pixels,
    }
    found = {
        name: moves(encode, frames.images, frames.episode, config.augment, config.seed)
        for name, encode in encoders.items()
    }
    return abstraction_figures(found, frames.episode, resamples=config.bootstrap, seed=config.seed)

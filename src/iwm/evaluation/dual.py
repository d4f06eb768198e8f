"""Two streams side by side on the same held-out frames: do they differ as intended?

The equivariant stream should know what transformations do (retrieval, the jitter probe); the
invariant one should move less under them (abstraction index) and still tell scenes apart,
above all under light and colours that the probe has never seen.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from iwm.evaluation.abstraction import abstraction_figures, moves
from iwm.evaluation.config import EvaluateConfig
from iwm.evaluation.core import REPORTED, Frames
from iwm.evaluation.latents import Encode, encoder_of, pixels, random_encoder
from iwm.evaluation.pictures import bars
from iwm.evaluation.probes import Labelled, earlier_and_later, identity_probe, jitter_probe
from iwm.evaluation.retrieval import augmentation_retrieval
from iwm.evaluation.statistics import Figure, bootstrap_mean, chance_mrr, constant
from iwm.models.iwm import IWM

Array = np.ndarray[Any, Any]

INVARIANT, EQUIVARIANT = "invariant", "equivariant"
BASELINES = ("random_encoder", "pixels")


@dataclass(frozen=True)
class Held:
    """Held-out frames: ``views`` for retrieval and abstraction; ``fit`` and ``test``, of
    different episodes, in order of time, labelled by recording."""

    views: Frames
    fit: Labelled
    test: Labelled


def compare(invariant: IWM, equivariant: IWM, held: Held, config: EvaluateConfig) -> dict[str, Any]:
    """All figures of both streams, of baselines, and the paired differences.

    Intervals are bootstrapped over episodes. Differences are named ``<a>_minus_<b>``.
    """
    streams = {INVARIANT: invariant.eval(), EQUIVARIANT: equivariant.eval()}
    encoders: dict[str, Encode] = {
        **{name: encoder_of(model, config.batch_size) for name, model in streams.items()},
        "random_encoder": random_encoder(equivariant, config.seed, config.batch_size),
        "pixels": pixels,
    }
    found = {
        name: moves(encode, held.test.images, held.test.episode, config.augment, config.seed)
        for name, encode in encoders.items()
    }
    abstraction = abstraction_figures(
        found, held.test.episode, resamples=config.bootstrap, seed=config.seed
    )
    metrics: dict[str, Any] = {
        **_retrieval(streams, held.views, config),
        "abstraction": abstraction,
        "probes": _probes(encoders, held, config),
    }
    metrics["data"] = {
        "images": len(held.views.images),
        "probe_frames": len(held.test.images),
        "episodes": len(np.unique(held.test.episode)),
    }
    return metrics


def draw(metrics: Mapping[str, Any], folder: Path) -> None:
    """``streams.png``: every figure of both streams and the baselines, with intervals."""
    names = (INVARIANT, EQUIVARIANT, *BASELINES, "chance")
    panels = {
        "Transformation retrieval, MRR": metrics["mrr"],
        "From z_cls alone, MRR": metrics["mrr_cls_only"],
        "Abstraction index": metrics["abstraction"],
        **{
            f"Probe: {name.replace('_', ' ')}": figures
            for name, figures in metrics["probes"].items()
        },
    }
    bars(
        {
            title: {name: figures[name] for name in names if name in figures}
            for title, figures in panels.items()
        },
        folder / "streams.png",
    )


def _retrieval(
    streams: Mapping[str, IWM], frames: Frames, config: EvaluateConfig
) -> dict[str, dict[str, Figure]]:
    measured = {
        name: augmentation_retrieval(
            model,
            frames.images,
            config.augment,
            bank=config.bank,
            queries=config.queries,
            seed=config.seed,
            label=f"evaluate: {name}",
        ).reciprocal
        for name, model in streams.items()
    }
    figures: dict[str, dict[str, Figure]] = {}
    for report, mode in REPORTED.items():
        values = {name: found[mode]["model"] for name, found in measured.items()}
        # An image's queries are one measurement: they share its bank.
        rows = {name: value.mean(1) for name, value in values.items()}
        figures[report] = _beside(rows, frames.episode, EQUIVARIANT, INVARIANT, config)
        figures[report]["chance"] = constant(chance_mrr(config.bank), len(frames.images))
    return figures


def _probes(
    encoders: Mapping[str, Encode], held: Held, config: EvaluateConfig
) -> dict[str, dict[str, Figure]]:
    figures: dict[str, dict[str, Figure]] = {}

    def identity(name: str, fit: Labelled, test: Labelled) -> None:
        results = {
            which: identity_probe(encode, fit, test, config.augment, config.seed)
            for which, encode in encoders.items()
        }
        for place, key in enumerate((name, f"{name}_jittered")):
            values = {which: found[place].astype(float) for which, found in results.items()}
            figures[key] = _beside(values, test.episode, INVARIANT, EQUIVARIANT, config)
            classes, counts = np.unique(fit.label, return_counts=True)
            commonest = test.label == classes[counts.argmax()]
            figures[key]["chance"] = constant(float(commonest.mean()), len(test.label))

    by_episode = Labelled(held.test.images, held.test.episode, held.test.episode)
    identity("episode", *earlier_and_later(by_episode))
    if len(np.unique(held.fit.label)) > 1:
        identity("recording", held.fit, held.test)
    explained = {
        name: jitter_probe(encode, held.fit.images, held.test.images, config.augment, config.seed)
        for name, encode in encoders.items()
    }
    figures["jitter"] = _beside(explained, held.test.episode, EQUIVARIANT, INVARIANT, config)
    figures["jitter"]["chance"] = constant(0.0, len(held.test.images))
    return figures


def _beside(
    values: Mapping[str, Array], episode: Array, first: str, second: str, config: EvaluateConfig
) -> dict[str, Figure]:
    """Each arm's mean, and ``<first>_minus_<second>``, paired."""
    paired = {**values, f"{first}_minus_{second}": values[first] - values[second]}
    return {
        name: bootstrap_mean(value, episode, resamples=config.bootstrap, seed=config.seed)
        for name, value in paired.items()
    }

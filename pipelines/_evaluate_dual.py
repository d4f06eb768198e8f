"""Comparison of two streams (Phase 2), as the stage `evaluate` calls it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from iwm.config import Params
from iwm.data.reader import ShardStore
from iwm.evaluation.dual import Held, compare, draw
from iwm.evaluation.probes import Labelled
from iwm.evaluation.statistics import interval
from pipelines._evaluate_image import frames
from pipelines._trained import load_fitting_model

_SHOWN = ("mrr", "mrr_cls_only", "abstraction")


def measure(
    phase: str, params: Params, store: ShardStore, folder: Path
) -> tuple[dict[str, Any], list[str]]:
    """Figures, and lines for the terminal; ``streams.png`` goes into ``folder``."""
    config = params.evaluate[phase]
    assert config.streams is not None
    invariant, equivariant = (load_fitting_model(name, params, store) for name in config.streams)
    fit_on = "val" if config.split == "test" else "test"
    held = Held(
        frames(store, config.split, config.images, config.seed),
        labelled(store, fit_on, config.probe_frames),
        labelled(store, config.split, config.probe_frames),
    )
    metrics = compare(invariant, equivariant, held, config)
    draw(metrics, folder)
    shown = {name: metrics[name] for name in _SHOWN}
    shown |= {f"probe {name}": figures for name, figures in metrics["probes"].items()}
    return metrics, [f"{name}: {_words(figures)}" for name, figures in shown.items()]


def labelled(store: ShardStore, split: str, count: int) -> Labelled:
    """About ``count`` frames of a split in order of time, every k-th of each episode; their
    label is the recording."""
    rows = store.rows(split)
    recording = store.recording_ids[rows].astype(np.int64)
    episode = (recording << 32) + store.table["episode"].to_numpy()[rows]
    step = store.table["step"].to_numpy()[rows]
    every = -(-len(rows) // count)
    order = np.lexsort((step, episode))
    chosen = order[step[order] % every == 0]
    images = torch.from_numpy(store.decode(rows[chosen])).permute(0, 3, 1, 2).contiguous()
    return Labelled(images, recording[chosen], episode[chosen])


def _words(figures: dict[str, Any]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {interval(one)}" for name, one in figures.items())

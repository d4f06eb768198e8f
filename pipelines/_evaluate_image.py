"""Evaluation of an image world model (Phases 1 and 2), as the stage `evaluate` calls it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from iwm.config import Params
from iwm.data.reader import ShardStore
from iwm.evaluation.core import Frames, draw, evaluate
from iwm.evaluation.statistics import interval
from iwm.files import write_json
from pipelines._trained import load_fitting_model


def measure(
    phase: str, params: Params, store: ShardStore, folder: Path
) -> tuple[dict[str, Any], list[str]]:
    """Figures, and lines for the terminal; calibration and pictures go into ``folder``."""
    config = params.evaluate[phase]
    model = load_fitting_model(phase, params, store)
    calibrate_on = "val" if config.split == "test" else "test"
    test = frames(store, config.split, config.images, config.seed)
    val = frames(store, calibrate_on, config.images, config.seed)
    many = frames(store, config.split, config.rank_images, config.seed)
    evaluation = evaluate(model, test, val, many, config)
    draw(evaluation, test, config, folder)
    write_json(folder / "calibration.json", evaluation.calibration)
    lines = []
    for name in ("mrr", "mrr_cls_only", "mrr_patches"):
        arms = evaluation.metrics[name]
        beside = ", ".join(
            f"{arm.replace('_', ' ')} {arms[arm]['mean']:.3f}"
            for arm in ("chance", "identity", "null_action", "shuffled_action")
        )
        best = arms["model"]
        lines.append(f"{name}: {interval(best)} ({beside})")
    rank = evaluation.metrics["collapse"]["effective_rank"]["mean"]
    return evaluation.metrics, [*lines, f"effective rank: {rank:.1f} of {model.latent_dim}"]


def frames(
    store: ShardStore,
    split: str,
    count: int,
    seed: int,
    recordings: Sequence[str] | None = None,
) -> Frames:
    """Up to ``count`` frames of a split, spread evenly over its episodes.

    Args:
        store: the shards.
        split: which part.
        count: frames wanted.
        seed: of the choice.
        recordings: only these; all when None.
    """
    rows = store.rows(split, recordings)
    recording = store.recording_ids[rows].astype(np.int64)
    episode = (recording << 32) + store.table["episode"].to_numpy()[rows]
    generator = np.random.default_rng(seed)
    shuffled = generator.permutation(len(rows))
    # The k-th frame of every episode stands before the k+1-th of any: an even spread.
    _, label = np.unique(episode[shuffled], return_inverse=True)
    turn = np.zeros(len(rows), np.int64)
    seen = np.zeros(label.max() + 1, np.int64)
    for place, which in enumerate(label):
        turn[place] = seen[which]
        seen[which] += 1
    chosen = np.sort(shuffled[np.argsort(turn, kind="stable")[:count]])
    images = torch.from_numpy(store.decode(rows[chosen])).permute(0, 3, 1, 2).contiguous()
    order = generator.permutation(len(chosen))  # pictures show different episodes first
    return Frames(images[order], episode[chosen][order])

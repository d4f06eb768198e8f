"""Have the latents collapsed? Effective rank and deviations over many held-out frames."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from iwm.evaluation.statistics import Figure, constant
from iwm.objectives.collapse import deviation, effective_rank


def collapse_figures(
    latents: Tensor, episode: np.ndarray[Any, Any], seed: int = 0
) -> dict[str, Figure]:
    """RankMe and deviations per dimension of clean frames' CLS.

    The interval of the rank is over random halves of the episodes: resampling with
    replacement repeats frames, which lowers a rank whatever the model.

    Args:
        latents: [n, D].
        episode: [n].
        seed: of the halves.
    """
    generator = np.random.default_rng(seed)
    episodes = np.unique(episode)
    halves = []
    for _ in range(20):
        chosen = generator.choice(episodes, size=max(1, len(episodes) // 2), replace=False)
        rows = torch.from_numpy(np.isin(episode, chosen))
        if int(rows.sum()) > 1:
            halves.append(float(effective_rank(latents[rows])))
    rank = float(effective_rank(latents))
    spread = deviation(latents)
    low = float(np.quantile(halves, 0.025)) if halves else rank
    return {
        "effective_rank": {"mean": rank, "low": min(low, rank), "high": rank, "n": len(latents)},
        "mean_std": constant(float(spread.mean()), len(latents)),
        "min_std": constant(float(spread.min()), len(latents)),
    }

"""Intentions of a trained world model: the codec that comes with it, and what it leaves unsaid."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import numpy as np
import torch

from iwm.agents.codec import TrajectoryCodec
from iwm.agents.fidelity import intention_fidelity
from iwm.agents.imagination import ImaginedTrajectoryGenerator
from iwm.agents.intention import IntentionCompressor
from iwm.data.trajectories import TrajectoryStore
from iwm.errors import DataError

STARTS = 1024
"""States of the training split from which trajectories are imagined to fit a codec."""
CASES = 4096
"""Held-out pairs of states."""
_AT_ONCE = 32


def fit_codec(model: Any, store: TrajectoryStore, *, seed: int = 0) -> TrajectoryCodec:
    """Fit a codec to what the model imagines from the training split.

    Args:
        model: an embodied world model.
        store: of its states.
        seed: of the plans.
    """
    states, _ = _starts(store, "train", STARTS)
    with closing(_generator(model)) as generator:
        parts = [
            generator.generate(states[first : first + _AT_ONCE], seed=seed + first).states
            for first in range(0, len(states), _AT_ONCE)
        ]
    found = np.concatenate(parts)
    return TrajectoryCodec.fit(found.reshape(-1, *found.shape[2:]))


def measure_intentions(
    model: Any, codec: TrajectoryCodec, store: TrajectoryStore, split: str, *, seed: int = 0
) -> tuple[dict[str, Any], str]:
    """``intention_fidelity`` on held-out states whose agents want to be where another of the
    states is; and a line for the terminal.
    """
    states, episodes = _starts(store, split, CASES)
    goals = np.random.default_rng(seed + 1).permutation(states)
    with closing(_generator(model)) as generator:
        found = intention_fidelity(
            generator, IntentionCompressor(codec), states, episodes, goals=goals, seed=seed
        )
    same, without = found["fidelity"], found["without"]
    line = (
        f"decisions as with full trajectories: {same['mean']:.3f} "
        f"[{same['low']:.3f}, {same['high']:.3f}] with intentions of "
        f"{found['bytes']['mean']:.1f} bytes, {without['mean']:.3f} without"
    )
    return found, line


def _generator(model: Any) -> ImaginedTrajectoryGenerator:
    return ImaginedTrajectoryGenerator(model.eval(), rollouts=10, horizon=model.horizon, workers=1)


def _starts(store: TrajectoryStore, split: str, count: int) -> tuple[Any, Any]:
    """States [N, S] spread over a split's episodes, and the episode of each [N]."""
    rows, episodes = store.starts(split, 2, 1)
    if len(rows) < 2:
        raise DataError(f"{store.folder}: split {split} holds fewer than two states to start from")
    kept = np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(np.int64)
    states = store.states[torch.as_tensor(rows[kept])]
    return states.numpy(), np.asarray(episodes)[kept]

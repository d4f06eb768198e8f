"""A world model of a few thousand parameters on vector states, and the codec of its plans."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from iwm.agents.codec import TrajectoryCodec
from iwm.agents.imagination import ImaginedTrajectoryGenerator
from iwm.agents.intention import IntentionCompressor
from iwm.models.embodied import WorldModel

STATE, ACTION, HORIZON, ROLLOUTS = 6, 2, 12, 5


def tiny_world_model(seed: int = 0) -> WorldModel:
    """Its states move: only in training does a step start at rest."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = WorldModel(
            state_dim=STATE, latent_dim=16, hidden_dim=32, horizon=HORIZON, action_dim=ACTION,
            trainable=False,
        ).eval()  # fmt: skip
        with torch.no_grad():
            model.dynamics.move.weight.normal_(0, 0.05)
    return model


def tiny_generator(model: WorldModel | None = None) -> ImaginedTrajectoryGenerator:
    """Five futures of twelve steps."""
    return ImaginedTrajectoryGenerator(
        model or tiny_world_model(), rollouts=ROLLOUTS, horizon=HORIZON
    )


def starts(count: int, seed: int = 0) -> np.ndarray:
    """States [count, STATE]."""
    return np.random.default_rng(seed).normal(size=(count, STATE)).astype(np.float32)


def tiny_compressor(generator: ImaginedTrajectoryGenerator | None = None) -> IntentionCompressor:
    """Fitted to what the generator imagines."""
    imagined = (generator or tiny_generator()).generate(starts(60, seed=9))
    return IntentionCompressor(TrajectoryCodec.fit(imagined.states.reshape(-1, HORIZON, STATE)))


def write_embodied(folder: Path, seed: int = 0) -> Path:
    """A model folder that can be served."""
    model = tiny_world_model(seed)
    model.save_pretrained(folder)
    tiny_compressor(tiny_generator(model)).codec.save(folder)
    return folder

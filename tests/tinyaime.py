"""A tiny AIME and sequences for it."""

from __future__ import annotations

from typing import Any

import torch

from iwm.data.batch import Batch
from iwm.models.aime import DPGMMVariationalRecurrentAutoencoder

NAMES = ("noop", "left", "right")
TINY: dict[str, Any] = {
    "image_size": [32, 32],
    "vocabulary": list(NAMES),
    "action_dim": 0,
    "max_components": 5,
    "latent_dim": 4,
    "hidden_dim": 16,
    "perceiver_config": {
        "codebook_size": 16,
        "context_dim": 16,
        "token_dim": 8,
        "width": 16,
        "num_latents": 2,
        "heads": 2,
        "reach": 8,
    },
    "prior_config": {"width": 16},
    "encoder_config": {"base_channels": 4},
    "decoder_config": {"base_channels": 4},
    "attention_config": {"num_slots": 3, "slot_dim": 8, "predictor_channels": 8},
}


def tiny(**over: Any) -> DPGMMVariationalRecurrentAutoencoder:
    torch.manual_seed(0)
    return DPGMMVariationalRecurrentAutoencoder(**{**TINY, **over})


def sequences(batch: int = 2, length: int = 6, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Observations [B, T, 3, 32, 32] and action vectors [B, T, 3]."""
    generator = torch.Generator().manual_seed(seed)
    observations = torch.rand(batch, length, 3, 32, 32, generator=generator)
    ids = torch.randint(0, len(NAMES), (batch, length), generator=generator)
    return observations, torch.nn.functional.one_hot(ids, len(NAMES)).float()


def windows(batch: int = 4, length: int = 5, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    zeros = torch.zeros(batch, dtype=torch.int64)
    shape = (batch, length, 3, 32, 32)
    return Batch(
        images=torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator),
        action=torch.randint(-1, len(NAMES), (batch, length), generator=generator),
        reward=torch.zeros(batch, length),
        done=torch.zeros(batch, length, dtype=torch.bool),
        recording=zeros,
        episode=torch.arange(batch),
        step=zeros,
        keys=[f"r/000000/{i:06d}" for i in range(batch)],
    )

"""Tiny, randomly initialised tokenizers and token dynamics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from iwm.models.registry import create_model
from iwm.models.vqvae.autoencoder import VQVAE
from iwm.models.vqvae.dynamics import TokenDynamics

SIZE = 32
VOCABULARY = ("noop", "turn_left", "turn_right")
TOKENIZER: dict[str, Any] = {
    "image_size": [SIZE, SIZE],
    "stem": 8,
    "channels": [16],
    "blocks": 1,
    "decoder_blocks": 1,
    "heads": 2,
    "groups": 4,
}


@dataclass
class Windows:
    """The part of a batch that the models read."""

    images: Tensor
    action: Tensor

    def __len__(self) -> int:
        return len(self.images)


def frames(batch: int, length: int, seed: int = 0) -> Tensor:
    """Pictures uint8 [B, T, H, W, 3] of soft noise."""
    generator = torch.Generator().manual_seed(seed)
    small = torch.rand(batch * length, 3, 8, 8, generator=generator)
    large = torch.nn.functional.interpolate(small, SIZE, mode="bilinear")
    pictures = (255 * large).to(torch.uint8).permute(0, 2, 3, 1)
    return pictures.reshape(batch, length, SIZE, SIZE, 3)


def windows(batch: int = 3, length: int = 4, seed: int = 0) -> Windows:
    """A batch of windows, channels before rows as the loader has them."""
    generator = torch.Generator().manual_seed(seed)
    actions = torch.randint(len(VOCABULARY), (batch, length), generator=generator)
    return Windows(frames(batch, length, seed).permute(0, 1, 4, 2, 3), actions)


def tiny_tokenizer(seed: int = 0, **over: Any) -> VQVAE:
    """A tokenizer of 4x4 tokens."""
    torch.manual_seed(seed)
    model = create_model("vqvae", **{**TOKENIZER, **over})
    assert isinstance(model, VQVAE)
    return model.eval()


def tiny_dynamics(seed: int = 0, **over: Any) -> TokenDynamics:
    """Dynamics over 4x4 tokens that depend on all that they may depend on."""
    torch.manual_seed(seed)
    settings: dict[str, Any] = {
        "image_size": [SIZE, SIZE],
        "vocabulary": list(VOCABULARY),
        "tokenizer": TOKENIZER,
        "context": 3,
        "group": 2,
        "width": 16,
        "depth": 4,
        "heads": 2,
        "detail": 8,
        "dropout": 0.0,
    }
    model = create_model("vqvae-dynamics", **{**settings, **over})
    assert isinstance(model, TokenDynamics)
    with torch.no_grad():  # what starts at zero hides what leads there
        for name, weight in model.named_parameters():
            if not name.startswith("tokenizer."):
                weight.add_(0.1 * torch.randn_like(weight))
        model.head.weight.normal_()
    return model.eval()

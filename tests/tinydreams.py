"""A tiny, randomly initialised generative model whose dreams move."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from iwm.models.registry import create_model

SIZE = 32
CONTEXT = 3
VOCABULARY = ("noop", "move_forward", "turn_left", "turn_right", "attack")

TOKENIZER = {
    "image_size": [SIZE, SIZE],
    "stem": 2,
    "channels": [8, 16],
    "blocks": 1,
    "decoder_blocks": 1,
    "heads": 2,
    "groups": 4,
    "quantiser": {"kind": "fsq", "levels": [5, 5, 5]},
}


def tiny_dreams(seed: int = 0, vocabulary: Sequence[str] = VOCABULARY) -> Any:
    """Token dynamics of a few thousand parameters, whose frames differ by action."""
    torch.manual_seed(seed)
    model = create_model(
        "vqvae-dynamics",
        vocabulary=list(vocabulary),
        image_size=[SIZE, SIZE],
        tokenizer=TOKENIZER,
        context=CONTEXT,
        width=16,
        depth=2,
        heads=2,
        detail=16,
    )
    with torch.no_grad():  # its head starts at zero, and its blocks take no note of the action
        for name, weight in model.named_parameters():
            if not name.startswith("tokenizer."):
                weight.add_(0.3 * torch.randn_like(weight))
    return model.eval()


def write_dreams(folder: Path, seed: int = 0, vocabulary: Sequence[str] = VOCABULARY) -> Path:
    """A model folder that can be played in."""
    tiny_dreams(seed, vocabulary).save_pretrained(folder)
    return folder

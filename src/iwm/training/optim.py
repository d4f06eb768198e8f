"""AdamW with decay groups, and the learning-rate schedule."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from iwm.training.config import OptimConfig

# Learned tokens and positions are biases in spirit: decay would pull them to zero.
_UNDECAYED = ("position", "token", "pos_embed")


def make_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW over the parameters that train; matrices decay, vectors and tokens do not."""
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        undecayed = parameter.ndim < 2 or any(word in name for word in _UNDECAYED)
        (plain if undecayed else decayed).append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]], lr=config.lr, betas=config.betas
    )


def learning_rate(step: int, total: int, config: OptimConfig) -> float:
    """Rate of step 0 <= step < total: linear warm-up, then cosine to ``final_lr``."""
    warmup = max(1, round(config.warmup * total))
    if step < warmup:
        return config.lr * (step + 1) / warmup
    progress = (step - warmup) / max(1, total - warmup)
    swing = 0.5 * (1 + math.cos(math.pi * progress))
    return config.final_lr + (config.lr - config.final_lr) * swing

"""Reading the action back from two frames: whether what was imagined shows what was done.

A small network is trained on real pairs of the training episodes; the share of actions it reads
right from imagined pairs is held against the share it reads right from real held-out ones.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from iwm.evaluation.sequences import Windows
from iwm.progress import Progress

Array = np.ndarray[Any, Any]

_SIDE = 32
"""Pictures are brought to this size, in pixels: actions move more than the finest detail."""


class InverseDynamics(nn.Module):
    """Two frames -> logits of the action between them.

    Args:
        actions: how many there are.
        width: channels of the first level.
    """

    def __init__(self, actions: int, width: int = 24) -> None:
        super().__init__()
        layers, channels = list[nn.Module](), 9
        for wider in (width, 2 * width, 4 * width):
            layers += [nn.Conv2d(channels, wider, 3, stride=2, padding=1), nn.BatchNorm2d(wider)]
            layers += [nn.ReLU()]
            channels = wider
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(channels * (_SIDE // 8) ** 2, actions)
        self.to(memory_format=torch.channels_last)

    def forward(self, before: Tensor, after: Tensor) -> Tensor:
        """Small pictures float [N, 3, 32, 32] in levels of 255 -> logits [N, actions]."""
        both = torch.cat([before, after, after - before], 1) / 127.5 - 1
        both = both.contiguous(memory_format=torch.channels_last)
        logits: Tensor = self.head(self.features(both).flatten(1))
        return logits

    @torch.no_grad()
    def read(self, before: Tensor, after: Tensor, choices: Tensor, batch: int = 512) -> Tensor:
        """The likeliest actions int64 [N] among each pair's ``choices`` [N, actions] bool.

        Args:
            before: uint8 [N, H, W, 3].
            after: the frames that follow.
            choices: actions that there are.
            batch: pairs at once.
        """
        self.eval()
        device = self.head.weight.device
        parts = []
        for at in torch.split(torch.arange(len(before)), batch):
            pair = (small(frames[at]).to(device) for frames in (before, after))
            parts.append(self(*pair).cpu().masked_fill(~choices[at], -torch.inf).argmax(1))
        return torch.cat(parts)


def small(frames: Tensor, batch: int = 512) -> Tensor:
    """uint8 [N, H, W, 3] -> float [N, 3, 32, 32] in levels of 255."""
    parts = [
        F.interpolate(
            some.permute(0, 3, 1, 2).float(), (_SIDE, _SIDE), mode="bilinear", antialias=True
        )
        for some in torch.split(frames, batch)
    ]
    return torch.cat(parts)


def train_reader(
    pairs: Windows,
    actions: int,
    *,
    steps: int,
    device: torch.device,
    batch: int = 128,
    learning_rate: float = 3e-3,
    noise: float = 2.0,
    seed: int = 0,
) -> InverseDynamics:
    """Train a reader on real pairs.

    Args:
        pairs: windows of two frames, of training episodes.
        actions: size of the vocabulary.
        steps: optimiser steps.
        device: to train on.
        batch: pairs a step.
        learning_rate: the highest, of a one-cycle course.
        noise: standard deviation in levels of 255, of noise on the small pictures: what is read
            shall not hang on the last bit, which a tokenizer does not keep.
        seed: of weights, order and noise.
    """
    before, after = (small(pairs.frames[:, place]) for place in (0, 1))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        reader = InverseDynamics(actions).to(device).train()
        optimiser = torch.optim.AdamW(reader.parameters(), lr=learning_rate, weight_decay=0.05)
        course = torch.optim.lr_scheduler.OneCycleLR(optimiser, learning_rate, total_steps=steps)
        order = torch.randint(len(pairs), (steps, batch))
        with Progress("train the action reader", steps, "steps") as progress:
            for at in order:
                both = torch.stack([before[at], after[at]])
                both = (both + noise * torch.randn(both.shape)).clamp(0, 255).to(device)
                loss = F.cross_entropy(reader(*both), pairs.actions[at, 0].to(device))
                optimiser.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
                course.step()
                progress.advance()
    return reader.eval()

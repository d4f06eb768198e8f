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

_SIDE = 64
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
        for wider in (width, 2 * width, 4 * width, 4 * width):
            layers += [nn.Conv2d(channels, wider, 3, stride=2, padding=1), nn.BatchNorm2d(wider)]
            layers += [nn.ReLU()]
            channels = wider
        self.features = nn.Sequential(*layers)
        side = _SIDE // 16
        self.head = nn.Linear(channels * side**2, actions)
        self.to(memory_format=torch.channels_last)

    def forward(self, before: Tensor, after: Tensor) -> Tensor:
        """uint8 [N, H, W, 3] each -> logits [N, actions]."""
        first, second = (_planes(frames) for frames in (before, after))
        both = torch.cat([first, second, second - first], 1)
        logits: Tensor = self.head(self.features(both).flatten(1))
        return logits

    @torch.no_grad()
    def read(self, before: Tensor, after: Tensor, choices: Tensor, batch: int = 512) -> Tensor:
        """The likeliest actions int64 [N] among each pair's ``choices`` [N, actions] bool."""
        self.eval()
        device = self.head.weight.device
        parts = []
        for at in torch.split(torch.arange(len(before)), batch):
            logits = self(before[at].to(device), after[at].to(device)).cpu()
            parts.append(logits.masked_fill(~choices[at], -torch.inf).argmax(1))
        return torch.cat(parts)


def _planes(frames: Tensor) -> Tensor:
    planes = frames.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
    planes = planes.float() / 127.5 - 1
    if planes.shape[-2:] != (_SIDE, _SIDE):
        planes = F.interpolate(planes, (_SIDE, _SIDE), mode="bilinear", antialias=True)
    return planes


def train_reader(
    pairs: Windows,
    actions: int,
    *,
    steps: int,
    device: torch.device,
    batch: int = 128,
    learning_rate: float = 3e-3,
    noise: float = 4.0,
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
        noise: standard deviation in levels of 255, of noise on the pictures: what is read shall
            not hang on the last bit, which a tokenizer does not keep.
        seed: of weights, order and noise.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        reader = InverseDynamics(actions).to(device).train()
        optimiser = torch.optim.AdamW(reader.parameters(), lr=learning_rate, weight_decay=0.01)
        course = torch.optim.lr_scheduler.OneCycleLR(optimiser, learning_rate, total_steps=steps)
        order = torch.randint(len(pairs), (steps, batch))
        with Progress("train the action reader", steps, "steps") as progress:
            for at in order:
                frames = pairs.frames[at].to(device)
                grain = (noise * torch.randn(frames.shape)).to(device)
                frames = (frames + grain).clamp(0, 255)
                logits = reader(frames[:, 0], frames[:, 1])
                loss = F.cross_entropy(logits, pairs.actions[at, 0].to(device))
                optimiser.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
                course.step()
                progress.advance()
    return reader.eval()

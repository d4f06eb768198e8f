"""Pictures of the sprite world, each of an episode of its own, and what is true of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from iwm.data.batch import Batch
from iwm.data.loader import epoch_order
from iwm.gameplay.config import RecordPlan
from iwm.gameplay.sources.procedural import ACTIONS, SHAPES, SpriteWorld

SIZE = 32
"""Pixels a side."""
_MAX_STEPS = 12  # of random play before the picture, so that sprites are collected too
_PLAN = RecordPlan(
    name="sprites", source="procedural", game="sprites", frames=1, width=SIZE, height=SIZE
)


@dataclass(frozen=True)
class Pictures:
    """N pictures and their truth.

    ``images`` uint8 [N, 3, SIZE, SIZE]; ``count`` int64 [N]: sprites besides the player,
    0 to 6; ``player`` float32 [N, 2]: the player's centre, x and y in [-1, 1]; ``shapes`` bool
    [N, 4]: whether a square, disc, diamond, cross is in the picture.
    """

    images: Tensor
    count: Tensor
    player: Tensor
    shapes: Tensor

    def __len__(self) -> int:
        return len(self.images)


def draw_pictures(number: int, first_seed: int) -> Pictures:
    """Play ``number`` episodes, seeds ``first_seed`` and up, each to one random moment.

    The same numbers give the same pictures in any process, on any machine.
    """
    world = SpriteWorld(_PLAN)
    images, counts, players, shapes = [], [], [], []
    for seed in range(first_seed, first_seed + number):
        random = np.random.default_rng(seed)
        frame: Any = world.reset(seed)
        for _ in range(int(random.integers(_MAX_STEPS))):
            outcome = world.step(int(random.integers(len(ACTIONS))))
            if outcome.done:
                break
            frame = outcome.frame
        truth = world.truth()
        if truth["count"] == 0:  # everything was collected: the episode's first picture instead
            frame = world.reset(seed)
            truth = world.truth()
        player, *others = truth["sprites"]
        present = {sprite["shape"] for sprite in others}
        images.append(frame)
        counts.append(truth["count"])
        players.append([2 * player[axis] / SIZE - 1 for axis in ("x", "y")])
        shapes.append([shape in present for shape in SHAPES[1:]])
    return Pictures(
        torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous(),
        torch.tensor(counts),
        torch.tensor(players, dtype=torch.float32),
        torch.tensor(shapes),
    )


class PictureBatches:
    """The trainer's view of pictures in memory: shuffled, the same for the same (epoch, step).

    Args:
        pictures: what is trained on.
        batch_size: pictures a step; what does not fill a step is left out.
        seed: of the order.
    """

    def __init__(self, pictures: Pictures, batch_size: int, seed: int) -> None:
        self._images, self._size, self._seed = pictures.images, batch_size, seed

    def __len__(self) -> int:
        return len(self._images) // self._size

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """Batches of one epoch from ``start_step`` on."""
        order = torch.from_numpy(epoch_order(len(self._images), self._seed, epoch))
        nothing = torch.zeros(self._size, 1)
        for step in range(start_step, len(self)):
            rows = order[step * self._size : (step + 1) * self._size]
            yield Batch(
                images=self._images[rows].unsqueeze(1),
                action=nothing.long() - 1,
                reward=nothing,
                done=nothing.bool(),
                recording=nothing[:, 0].long(),
                episode=rows,
                step=nothing[:, 0].long(),
                keys=[f"sprites/{row}" for row in rows.tolist()],
            )

"""What the loader hands to a model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import torch


@dataclass(frozen=True)
class Batch:
    """B windows of T frames each, every window inside one episode.

    ``action[b, t]`` was taken after seeing ``images[b, t]``; ``reward`` and ``done`` are its
    outcome. With a stride above one these are the sampled steps' own values.
    """

    images: torch.Tensor
    """uint8 [B, T, 3, H, W], RGB; memory is channels-last, as the decoder wrote it."""
    action: torch.Tensor
    """int64 [B, T]: place in the loader's vocabulary, or else id in the recording's own; -1
    where none was taken."""
    reward: torch.Tensor
    """float32 [B, T]."""
    done: torch.Tensor
    """bool [B, T]."""
    recording: torch.Tensor
    """int64 [B]: position in ``ShardStore.recordings``."""
    episode: torch.Tensor
    """int64 [B]: number of the episode within its recording."""
    step: torch.Tensor
    """int64 [B]: number of the window's first step within its episode."""
    keys: list[str]
    """Key of each window's first frame."""
    action_vector: torch.Tensor | None = None
    """float32 [B, T, A], continuous actions padded with zeros; None when all are discrete."""

    def __len__(self) -> int:
        return len(self.keys)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        """The same batch with its tensors on ``device``."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        """The same batch in page-locked memory, so that copies to a GPU can overlap."""
        return self._map(lambda tensor: tensor.pin_memory())

    def _map(self, function: Callable[[torch.Tensor], torch.Tensor]) -> Self:
        moved: dict[str, Any] = {
            item.name: function(value)
            for item in fields(self)
            if isinstance(value := getattr(self, item.name), torch.Tensor)
        }
        return replace(self, **moved)

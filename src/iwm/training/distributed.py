"""One process or many: what ``torchrun`` says, and the few collectives training needs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import distributed

from iwm.errors import ConfigError


@dataclass(frozen=True)
class Ranks:
    """This process's place: ``rank`` of ``world``, on ``device``."""

    rank: int
    world: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this process writes files and talks to trackers."""
        return self.rank == 0

    def mean(self, values: dict[str, torch.Tensor]) -> dict[str, float]:
        """Scalars averaged over all ranks."""
        if not values:
            return {}
        stacked = torch.stack([value.float().detach() for value in values.values()])
        if self.world > 1:
            distributed.all_reduce(stacked)
            stacked /= self.world
        return dict(zip(values, stacked.tolist(), strict=True))

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.world > 1:
            distributed.barrier()


def choose_device(name: str, local_rank: int = 0) -> torch.device:
    """``auto`` takes this rank's accelerator, else the CPU.

    Raises:
        ConfigError: a device that this machine does not have.
    """
    if name == "auto":
        if not torch.accelerator.is_available():
            return torch.device("cpu")
        kind = torch.accelerator.current_accelerator()
        return torch.device(kind.type if kind else "cpu", local_rank)
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"train.device {name!r}: not available: {reason}") from None
    return device


@contextmanager
def ranks(device: str) -> Iterator[Ranks]:
    """Join the process group that ``torchrun`` describes; alone without it."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    rank, local = int(os.environ.get("RANK", "0")), int(os.environ.get("LOCAL_RANK", "0"))
    chosen = choose_device(device, local)
    if chosen.type != "cpu":
        torch.accelerator.set_device_index(chosen.index or 0)
    if world == 1:
        yield Ranks(0, 1, chosen)
        return
    # ROCm builds call their collectives nccl too.
    distributed.init_process_group("gloo" if chosen.type == "cpu" else "nccl")
    try:
        yield Ranks(rank, world, chosen)
    finally:
        distributed.destroy_process_group()

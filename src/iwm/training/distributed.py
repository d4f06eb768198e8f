"""One process or many: what ``torchrun`` says, and the few collectives training needs."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
from torch import distributed

from iwm.errors import ConfigError, IwmError
from iwm.objectives.gather import Part

Answer = TypeVar("Answer")

# The first process writes checkpoints and pictures while the others wait for it.
_PATIENCE = timedelta(minutes=30)


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

    def meet(self, rows: int, stop: int) -> tuple[Part, int]:
        """Begin a step together.

        Args:
            rows: of this process's batch.
            stop: number of the signal that asked this process to stop; 0 for none.

        Returns:
            This process's rows of the global batch, and the largest ``stop`` of all.
        """
        if self.world == 1:
            return Part.whole(rows), stop
        mine = torch.tensor([rows, stop], device=self.device)
        everyone = mine.new_empty(self.world, 2)
        distributed.all_gather(list(everyone.unbind()), mine)
        sizes, stops = everyone.T.tolist()
        return Part(self.rank, tuple(sizes)), max(stops)

    def mean(self, values: dict[str, torch.Tensor]) -> dict[str, float]:
        """Scalars averaged over all ranks; what is not finite in one is not in any."""
        if not values:
            return {}
        stacked = torch.stack([value.float().detach() for value in values.values()])
        if self.world > 1:
            distributed.all_reduce(stacked)
            stacked /= self.world
        return dict(zip(values, stacked.tolist(), strict=True))

    def from_first(self, ask: Callable[[], Answer]) -> Answer:
        """What rank 0 answers, in every rank: one process looks at the disk, all agree.

        Raises:
            IwmError: the one that ``ask`` raised in rank 0, in every rank.
        """
        if self.world == 1:
            return ask()
        box: list[tuple[Answer | None, IwmError | None]] = [(None, None)]
        if self.first:
            try:
                box = [(ask(), None)]
            except IwmError as problem:
                box = [(None, problem)]
        distributed.broadcast_object_list(box, src=0, device=self.device)
        answer, error = box[0]
        if error is not None:
            raise error
        return answer  # type: ignore[return-value]

    def from_all(self, value: Answer) -> list[Answer]:
        """Every rank's value, in order of rank."""
        if self.world == 1:
            return [value]
        values: list[Answer | None] = [None] * self.world
        distributed.all_gather_object(values, value)
        return values  # type: ignore[return-value]

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
    distributed.init_process_group(
        "gloo" if chosen.type == "cpu" else "nccl",
        timeout=_PATIENCE,
        device_id=None if chosen.type == "cpu" else chosen,
    )
    try:
        yield Ranks(rank, world, chosen)
    finally:
        distributed.destroy_process_group()

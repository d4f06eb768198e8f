"""One process or many: what ``torchrun`` says, and the few collectives training needs."""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
from torch import distributed

from iwm.errors import ClusterError, ConfigError, IwmError
from iwm.objectives.gather import Part

Answer = TypeVar("Answer")

PATIENCE = "IWM_PATIENCE_S"
"""Environment variable: seconds after which a process that says nothing counts as lost."""
# The first process writes checkpoints and pictures while the others wait for it.
_PATIENCE_S = 600.0


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


def address_towards(host: str) -> str:
    """This machine's own address on the way to ``host``; nothing is sent.

    Raises:
        ConfigError: the name is not known, or there is no way.
    """
    try:
        family, kind, _, _, place = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(place)
            return str(probe.getsockname()[0])
    except OSError as error:
        raise ConfigError(f"{host}: cannot be reached: {error.strerror or error}") from None


def interface_of(address: str) -> str | None:
    """The network interface that has an address; ``None`` for a loopback or unknown one."""
    import psutil

    if ipaddress.ip_address(address.partition("%")[0]).is_loopback:
        return None
    for name, entries in psutil.net_if_addrs().items():
        if any(entry.address == address for entry in entries):
            return str(name)
    return None


def _patience() -> timedelta:
    given = os.environ.get(PATIENCE)
    try:
        seconds = _PATIENCE_S if given is None else float(given)
        if seconds > 0:
            return timedelta(seconds=seconds)
    except ValueError:
        pass
    raise ConfigError(f"{PATIENCE}={given}: not a number of seconds above 0")


def _choose_interface() -> None:
    """Have gloo talk over the interface towards the first process.

    By itself it takes the one of this machine's name, which many systems resolve to loopback.
    """
    if "GLOO_SOCKET_IFNAME" in os.environ:
        return
    with suppress(ConfigError):
        name = interface_of(address_towards(os.environ.get("MASTER_ADDR", "localhost")))
        if name is not None:
            os.environ["GLOO_SOCKET_IFNAME"] = name


def _lost_touch(error: RuntimeError) -> bool:
    """Whether another process, or the way to it, is gone."""
    return isinstance(error, distributed.DistError) or "gloo" in str(error).lower()


def _lost(error: RuntimeError, rank: int, world: int) -> ClusterError:
    # The first line, without the source's path before it.
    said = str(error).splitlines()[0].rpartition("] ")[2] if str(error) else type(error).__name__
    return ClusterError(
        f"process {rank} of {world} lost another one ({said.strip().rstrip('.')[:160]}); run it "
        "again on all hosts to go on from the last checkpoint"
    )


@contextmanager
def ranks(device: str) -> Iterator[Ranks]:
    """Join the process group that ``torchrun`` describes; alone without it.

    Raises:
        ClusterError: another process ended, or said nothing for :data:`PATIENCE`.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    rank, local = int(os.environ.get("RANK", "0")), int(os.environ.get("LOCAL_RANK", "0"))
    chosen = choose_device(device, local)
    if chosen.type != "cpu":
        torch.accelerator.set_device_index(chosen.index or 0)
    if world == 1:
        yield Ranks(0, 1, chosen)
        return
    _choose_interface()
    try:
        # ROCm builds call their collectives nccl too.
        distributed.init_process_group(
            "gloo" if chosen.type == "cpu" else "nccl",
            timeout=_patience(),
            device_id=None if chosen.type == "cpu" else chosen,
        )
        yield Ranks(rank, world, chosen)
    except RuntimeError as error:
        if not _lost_touch(error):
            raise
        raise _lost(error, rank, world) from None
    finally:
        if distributed.is_initialized():
            distributed.destroy_process_group()

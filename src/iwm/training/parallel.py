"""A model made ready for its processes: compiled, replicated (DDP) or sharded (FSDP2).

Whatever the form, checkpoints and released models hold whole tensors under the model's own
names, so that any number of processes, in either form, can go on from them.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from iwm.errors import ConfigError
from iwm.training.config import TrainConfig
from iwm.training.distributed import Ranks


def prepare(model: nn.Module, config: TrainConfig, ranks: Ranks) -> nn.Module:
    """What to call for the loss, on the ranks' device.

    Its parameters are the model's own. Every rank must hold the same weights.

    Raises:
        ConfigError: it is to be compiled, and there is no compiler.
    """
    if config.compile:
        _need_compiler(ranks)
        # Blocks alone: they are most of the work, and what lies between them (drawing views
        # on the CPU, a different number of hidden tokens a step) would break the graph.
        for block in model.blocks():  # type: ignore[operator]
            block.compile(dynamic=True)
    if ranks.world == 1:
        return model.to(ranks.device)
    if config.sharding == "fsdp":
        mesh = init_device_mesh(ranks.device.type, (ranks.world,))
        for block in model.blocks():  # type: ignore[operator]
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
        return model
    devices = None if ranks.device.type == "cpu" else [ranks.device]
    return nn.parallel.DistributedDataParallel(model.to(ranks.device), device_ids=devices)


def _need_compiler(ranks: Ranks) -> None:
    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    if ranks.device.type == "cpu" and shutil.which(compiler) is None:
        raise ConfigError(
            f"train.compile: no C++ compiler {compiler!r} found; install one, name it in CXX, or "
            "set compile to false"
        )


def whole(tensor: Tensor) -> Tensor:
    """A tensor with its shards brought together: all ranks must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """A whole tensor placed, and sharded, as a parameter is."""
    if isinstance(parameter, DTensor):
        return distribute_tensor(tensor, parameter.device_mesh, parameter.placements)
    return tensor.to(parameter.device)


def collect(tensors: dict[str, Tensor], ranks: Ranks) -> dict[str, Tensor]:
    """Whole tensors on the CPU, in rank 0 (others: none); all ranks must ask."""
    found = {}
    for name, tensor in tensors.items():
        together = whole(tensor.detach())
        if ranks.first:
            found[name] = together.cpu().contiguous()
    return found


@contextmanager
def whole_state(model: nn.Module, ranks: Ranks) -> Iterator[None]:
    """Let ``model.state_dict()`` give whole tensors, in rank 0; all ranks must enter."""
    tensors = collect(model.state_dict(), ranks)

    def replace(_: nn.Module, state: dict[str, Any], prefix: str, __: Any) -> None:
        state.update({name: tensors[name] for name in state} if not prefix else {})

    handle = model.register_state_dict_post_hook(replace)  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        handle.remove()

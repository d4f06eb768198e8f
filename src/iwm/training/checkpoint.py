"""Resume state on disk: whole or absent, safetensors and JSON, never pickle.

``<folder>/step-00000100/`` holds ``model.safetensors``, ``optimizer.safetensors`` and
``state.json``; the folder appears under its name only when everything is on disk. There is
no state of random generators to save: every step's randomness is a function of
(seed, step, rank), see :mod:`iwm.training.trainer`.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from iwm.errors import ModelError
from iwm.files import TEMPORARY_PREFIX, atomic_directory, read_json, write_json

FORMAT_VERSION = 1
_PREFIX = "step-"


def checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.name.startswith(_PREFIX))


def save_checkpoint(
    folder: Path,
    step: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: dict[str, Any],
    keep: int = 2,
) -> Path:
    """Write a checkpoint after ``step`` steps; drop all but the last ``keep``.

    ``state`` is JSON. Left-overs of killed writes are removed.
    """
    from safetensors.torch import save_file

    target = folder / f"{_PREFIX}{step:08d}"
    with atomic_directory(target) as temporary:
        save_file(_own(model.state_dict()), temporary / "model.safetensors")
        save_file(_optimizer_tensors(model, optimizer), temporary / "optimizer.safetensors")
        write_json(
            temporary / "state.json", {**state, "format_version": FORMAT_VERSION, "step": step}
        )
    for old in checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
    for partial in folder.glob(f"{TEMPORARY_PREFIX}*"):
        shutil.rmtree(partial)
    return target


def read_state(path: Path) -> dict[str, Any]:
    """``state.json`` of a checkpoint.

    Raises:
        ModelError: written by a newer version.
    """
    state: dict[str, Any] = read_json(path / "state.json")
    if state["format_version"] > FORMAT_VERSION:
        raise ModelError(
            f"{path}: checkpoint version {state['format_version']} is newer than this software's "
            f"{FORMAT_VERSION}; upgrade iwm, or delete it to start anew"
        )
    return state


def load_checkpoint(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Restore model and optimizer, bit for bit.

    Raises:
        ModelError: the file does not fit the model.
    """
    from safetensors.torch import load_file

    try:
        model.load_state_dict(load_file(path / "model.safetensors"))
    except RuntimeError as error:
        raise ModelError(f"{path}: does not fit the model: {str(error).splitlines()[-1]}") from None
    tensors = load_file(path / "optimizer.safetensors")
    for name, parameter in _trained(model, optimizer):
        entry: dict[str, Tensor] = {}
        for key, value in tensors.items():
            owner, _, slot = key.rpartition("|")
            if owner == name:
                # AdamW keeps its step counters on the CPU unless it is fused.
                entry[slot] = value if slot == "step" else value.to(parameter.device)
        if entry:
            optimizer.state[parameter] = entry


def _trained(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[tuple[str, nn.Parameter]]:
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    return [(name, p) for name, p in model.named_parameters() if id(p) in held]


def _optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    tensors = {}
    for name, parameter in _trained(model, optimizer):
        for slot, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{name}|{slot}"] = value
    return _own(tensors)


def _own(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in tensors.items()}

"""Resume state on disk: whole or absent, safetensors and JSON, never pickle.

``<folder>/step-00000100/`` holds ``model.safetensors``, ``optimizer.safetensors`` and
``state.json``; the folder appears under its name only when everything is on disk. There is
no state of random generators to save: every step's randomness is a function of
(seed, step, rank), see :mod:`iwm.training.trainer`.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from iwm.errors import ModelError
from iwm.files import TEMPORARY_PREFIX, atomic_directory, read_json, write_json
from iwm.training.parallel import like

FORMAT_VERSION = 1
_PREFIX = "step-"
_TENSORS = ("model.safetensors", "optimizer.safetensors")


def checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.name.startswith(_PREFIX))


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint's files, in words; ``None`` when they are as written."""
    try:
        sums = read_json(path / "state.json").get("sha256", {})
        for name in _TENSORS:
            found = sha256(path / name)
            if found != sums.get(name, found):  # those of earlier versions hold no digests
                return f"{name} is not what was written"
    except (OSError, ValueError, AttributeError) as error:
        return str(error)
    return None


def save_checkpoint(
    folder: Path,
    step: int,
    model: dict[str, Tensor],
    optimizer: dict[str, Tensor],
    state: dict[str, Any],
    keep: int = 2,
) -> Path:
    """Write a checkpoint after ``step`` steps; drop all but the last ``keep``.

    Args:
        folder: of all checkpoints.
        step: taken so far.
        model: whole tensors by name, on the CPU.
        optimizer: the same, from :func:`optimizer_tensors`.
        state: plain values.
        keep: checkpoints that stay. Left-overs of killed writes are removed.
    """
    from safetensors.torch import save_file

    target = folder / f"{_PREFIX}{step:08d}"
    with atomic_directory(target) as temporary:
        save_file(model, temporary / "model.safetensors")
        save_file(optimizer, temporary / "optimizer.safetensors")
        sums = {name: sha256(temporary / name) for name in _TENSORS}
        write_json(
            temporary / "state.json",
            {**state, "format_version": FORMAT_VERSION, "step": step, "sha256": sums},
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


def load_model(path: Path, model: nn.Module) -> None:
    """Restore a model's tensors, bit for bit, before it is sharded.

    Raises:
        ModelError: the file is not there, or does not fit the model.
    """
    from safetensors.torch import load_file

    try:
        model.load_state_dict(load_file(path / "model.safetensors"))
    except FileNotFoundError:
        raise ModelError(f"{path}: not found; all machines must see the same folder") from None
    except RuntimeError as error:
        raise ModelError(f"{path}: does not fit the model: {str(error).splitlines()[-1]}") from None


def load_optimizer(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Restore an optimizer's state, bit for bit, sharded as the model is."""
    from safetensors.torch import load_file

    entries: dict[str, dict[str, Tensor]] = {}
    for key, value in load_file(path / "optimizer.safetensors").items():
        name, _, slot = key.rpartition("|")
        entries.setdefault(name, {})[slot] = value
    for name, parameter in _trained(model, optimizer):
        if entry := entries.get(name):
            # AdamW keeps its step counters on the CPU unless it is fused.
            optimizer.state[parameter] = {
                slot: value if slot == "step" else like(value, parameter)
                for slot, value in entry.items()
            }


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """An optimizer's state as ``{"parameter|slot": tensor}``."""
    tensors = {}
    for name, parameter in _trained(model, optimizer):
        for slot, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{name}|{slot}"] = value
    return tensors


def _trained(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[tuple[str, nn.Parameter]]:
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    return [(name, p) for name, p in model.named_parameters() if id(p) in held]

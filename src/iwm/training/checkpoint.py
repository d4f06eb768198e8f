"""Resume state on disk: whole or absent, safetensors and JSON, never pickle.

``<folder>/step-00000100/`` holds ``model.safetensors``, ``optimizer.safetensors`` and
``state.json``, which since version 2 also holds the SHA-256 of both (``sha256``) and the id of the
run that wrote them (``run_id``). The folder appears under its name only when everything is on
disk. There is no state of random generators to save: every step's randomness is a function of
(seed, step, rank), see :mod:`iwm.training.trainer`.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from iwm.errors import ModelError
from iwm.files import TEMPORARY_PREFIX, atomic_directory, read_json, write_json
from iwm.logs import RUN_ID
from iwm.training.parallel import like
from iwm.versions import Format

FORMAT = Format("checkpoint", current=2, error=ModelError)
STATE_FILE = "state.json"
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
        sums = read_json(path / STATE_FILE).get("sha256", {})
        for name in _TENSORS:
            found = sha256(path / name)
            if found != sums.get(name, found):  # version 1 holds no digests
                return f"{name} is not what was written"
    except (OSError, ValueError, AttributeError) as error:
        return str(error)
    return None


def _sums(path: Path) -> dict[str, str]:
    return {name: sha256(path / name) for name in _TENSORS}


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
        whole = {**state, "format_version": FORMAT.current, "step": step}
        run_id = os.environ.get(RUN_ID)
        write_json(temporary / STATE_FILE, whole | {"sha256": _sums(temporary), "run_id": run_id})
    for old in checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
    for partial in folder.glob(f"{TEMPORARY_PREFIX}*"):
        shutil.rmtree(partial)
    return target


def read_state(path: Path) -> dict[str, Any]:
    """``state.json`` of a checkpoint.

    Raises:
        ModelError: a version that this software does not read.
    """
    state: dict[str, Any] = read_json(path / STATE_FILE)
    FORMAT.check(state.get("format_version"), path)
    return state


def migrate_checkpoint(path: Path, *, code: str | None = None, write: bool = True) -> int | None:
    """Bring a checkpoint up to date; its tensors stay as they are.

    Args:
        path: of one checkpoint.
        code: the revision of the code that is to go on with it, where its owner takes the
            responsibility for a change of code in the middle of a run; ``None`` keeps what it is.
        write: do it; otherwise only look.

    Returns:
        The version it had; ``None`` when nothing is to be done.

    Raises:
        ModelError: newer, too old, or damaged.
    """
    if fault := damage(path):
        raise ModelError(f"{path}: {fault}")
    state: dict[str, Any] = read_json(path / STATE_FILE)
    found = FORMAT.known(state.get("format_version"), path)
    adopts = code is not None and state["identity"]["code"] != code
    if found == FORMAT.current and not adopts:
        return None
    if found < FORMAT.current:
        state |= {"format_version": FORMAT.current, "sha256": _sums(path), "run_id": None}
    if adopts:
        before = [*state.get("earlier_code", []), state["identity"]["code"]]
        state |= {"identity": {**state["identity"], "code": code}, "earlier_code": before}
    if write:
        write_json(path / STATE_FILE, state)
    return found


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

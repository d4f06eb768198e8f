"""Released models on disk: ``config.json`` and ``model.safetensors``, nothing executable."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from iwm.errors import ModelError
from iwm.files import atomic_path, read_json, write_json
from iwm.versions import Format

FORMAT = Format("model", current=1, error=ModelError)
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"


def save_model(
    folder: Path, model: str, settings: dict[str, Any], weights: dict[str, Tensor], **more: Any
) -> None:
    """Write a model atomically; ``more`` are further plain fields of config.json."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    contiguous = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
    with atomic_path(folder / WEIGHTS_FILE) as temporary:
        # One entry: several stand in an order that differs from process to process, and the same
        # weights would be other bytes.
        save_file(contiguous, temporary, metadata={"format": "pt"})
        temporary.chmod(0o644)  # safetensors makes it private; a released model is not
    write_json(
        folder / CONFIG_FILE,
        {"format_version": FORMAT.current, "model": model, "settings": settings, **more},
    )


def read_config(folder: Path, model: str | None = None) -> dict[str, Any]:
    """Read and check ``config.json``.

    Raises:
        ModelError: missing, not JSON, newer than this software, or of another model.
    """
    path = folder / CONFIG_FILE
    try:
        config = read_json(path)
    except FileNotFoundError:
        raise ModelError(f"{path}: not found; {folder} holds no model") from None
    except (ValueError, UnicodeDecodeError) as error:
        raise ModelError(f"{path}: not JSON: {error}") from None
    if not isinstance(config, dict):
        raise ModelError(f"{path}: expected an object, found {type(config).__name__}")
    FORMAT.check(config.get("format_version"), path)
    if model is not None and config.get("model") != model:
        raise ModelError(f"{path}: holds a model {config.get('model')!r}, expected {model!r}")
    if not isinstance(config.get("settings"), dict):
        raise ModelError(f"{path}: settings is missing or not an object")
    return config


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Read ``model.safetensors``.

    Raises:
        ModelError: missing or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = folder / WEIGHTS_FILE
    try:
        return load_file(path)
    except FileNotFoundError:
        raise ModelError(f"{path}: not found") from None
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path}: cannot be read: {error}") from None

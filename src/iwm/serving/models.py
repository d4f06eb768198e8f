"""The models of one service: the one that answers, and what stands beside it.

The two streams behind /encode_dual, the generative model behind /reconstruct and /dream, the
world model of states behind /imagine and /intention.

A folder holds one model (``config.json`` in it), or several: a folder a variant, and
``models.json`` with ``{"default": VARIANT}`` where one is meant to answer. Only what answers
is loaded: the chosen variant, the streams, the generative model, the one of states.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from iwm.errors import ModelError
from iwm.files import read_json
from iwm.models.saving import read_config
from iwm.serving.config import RANDOM, ServiceConfig
from iwm.serving.dreaming import DYNAMICS, TOKENIZER, Dreamer, load_dreamer
from iwm.serving.embodied import EMBODIED, Imaginer, load_imaginer
from iwm.serving.engine import Engine
from iwm.serving.precision import load_checked

CONFIG_FILE = "config.json"
MODELS_FILE = "models.json"
STREAMS = ("invariant", "equivariant")
"""Variants of the semantic and the equivariant stream."""
BESIDE = (DYNAMICS, TOKENIZER, EMBODIED)
"""Variants that know no latents of images: they never answer by themselves."""
PREFERRED = ("action", "core")
"""Which variant answers where nobody says."""


@dataclass(frozen=True)
class Models:
    """Engines that are ready to answer."""

    main: Engine
    variant: str
    """Of ``main``."""
    streams: Mapping[str, Engine] = field(default_factory=dict)
    """Variant -> engine: both of :data:`STREAMS`, or none."""
    dreamer: Dreamer | None = None
    imaginer: Imaginer | None = None

    def cards(self) -> dict[str, dict[str, Any]]:
        """Variant -> card of every loaded model."""
        cards = {name: engine.card for name, engine in self.engines().items()}
        for name, beside in ((DYNAMICS, self.dreamer), (EMBODIED, self.imaginer)):
            if beside is not None:
                cards[name] = beside.card
        return cards

    def engines(self) -> dict[str, Engine]:
        """Variant -> every loaded engine."""
        return {**self.streams, self.variant: self.main}

    def replaced(self, newer: Mapping[str, Any]) -> Models:
        """The same variants, some by newer ones, as :func:`load_variant` loads them."""
        streams = {name: newer.get(name, engine) for name, engine in self.streams.items()}
        main = newer.get(self.variant, self.main)
        return Models(
            main,
            self.variant,
            streams,
            newer.get(DYNAMICS, self.dreamer),
            newer.get(EMBODIED, self.imaginer),
        )


def load_variant(variant: str, folder: Path, config: ServiceConfig) -> Engine | Dreamer | Imaginer:
    """Load one model, warmed up.

    Raises:
        ModelError: a model that cannot be loaded.
        ConfigError: no such device, or a precision that is refused.
    """
    if variant == DYNAMICS:
        return load_dreamer(folder, config.device)
    if variant == EMBODIED:
        return load_imaginer(folder, config.device)
    return load_checked(folder, config.device, config.precision)


def load_models(config: ServiceConfig) -> Models:
    """Load what ``config`` names, warmed up.

    Raises:
        ModelError: no such folder or variant, or a model that cannot be loaded.
        ConfigError: no such device, or a precision that is refused.
    """
    path = config.model_path
    if path is None:
        raise ModelError("no model folder is set (IWM_MODEL_PATH)")
    if path == Path(RANDOM):
        from iwm.serving.untrained import untrained

        return untrained(config)
    folders = variants(path)
    if isinstance(folders, Path):
        _can_answer(str(read_config(folders).get("model")), folders)
        main = load_checked(folders, config.device, config.precision)
        wanted = config.model_variant
        if wanted not in (None, main.variant):
            raise ModelError(f"{path}: holds the variant {main.variant!r}, not {wanted!r}")
        return Models(main, main.variant)
    variant = choose(folders, config.model_variant, path)
    streams = STREAMS if all(name in folders for name in STREAMS) else ()
    engines = {
        name: load_checked(folders[name], config.device, config.precision)
        for name in dict.fromkeys((variant, *streams))
    }
    dreamer = load_dreamer(folders[DYNAMICS], config.device) if DYNAMICS in folders else None
    imaginer = load_imaginer(folders[EMBODIED], config.device) if EMBODIED in folders else None
    return Models(
        engines[variant], variant, {name: engines[name] for name in streams}, dreamer, imaginer
    )


def _can_answer(variant: str, where: Path) -> None:
    if variant in BESIDE:
        folder = EMBODIED if variant == EMBODIED else DYNAMICS
        raise ModelError(
            f"{where}: {variant} is served beside a model of latents: put it into a folder "
            f"{folder}/ next to action/ or core/"
        )


def variants(path: Path) -> dict[str, Path] | Path:
    """Variant -> model folder; the folder itself where it holds one model.

    Raises:
        ModelError: no such folder, or no model in it.
    """
    if not path.is_dir():
        raise ModelError(f"{path}: no such model folder")
    if (path / CONFIG_FILE).is_file():
        return path
    found = {
        folder.name: folder for folder in sorted(path.iterdir()) if (folder / CONFIG_FILE).is_file()
    }
    # A folder without any config.json is a damaged model: let loading say what is missing.
    return found or path


def choose(folders: Mapping[str, Path], wanted: str | None, path: Path) -> str:
    """Which variant answers.

    Args:
        folders: the variants there are.
        wanted: by name, or ``None``.
        path: of the folder that holds them, which may name a default.

    Raises:
        ModelError: it is not there.
    """
    if wanted is None and (path / MODELS_FILE).is_file():
        try:
            wanted = str(read_json(path / MODELS_FILE)["default"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ModelError(f"{path / MODELS_FILE}: names no default: {error!r}") from None
    if wanted is None:
        others = sorted(folders, key=lambda name: name in BESIDE)
        wanted = next((name for name in PREFERRED if name in folders), others[0])
    _can_answer(wanted, path)
    if wanted not in folders:
        raise ModelError(f"{path}: holds no variant {wanted!r}; it holds {', '.join(folders)}")
    return wanted

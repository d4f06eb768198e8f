"""Ready-made models: folders of this package, found by name.

Each folder holds ``config.json``, ``model.safetensors``, ``calibration.json``, the gate and
metrics reports, ``card.json`` and a model card, ``README.md``. The variable ``IWM_ZOO`` names
another folder of such folders.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iwm.errors import ModelError
from iwm.files import read_json

ENVIRONMENT = "IWM_ZOO"
CARD_FILE = "card.json"
WEIGHTS_FILE = "model.safetensors"
MAX_WEIGHTS_BYTES = 12_000_000
"""A ready-made model's weights are no larger: they ship in the package."""
NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")


@dataclass(frozen=True)
class ReadyMade:
    """One ready-made model: its name, folder, bytes of its weights, and its card."""

    name: str
    folder: Path
    size: int
    card: dict[str, Any]


def root() -> Path:
    """The folder that holds the models."""
    return Path(os.environ.get(ENVIRONMENT) or Path(__file__).parent)


def names() -> tuple[str, ...]:
    """Names of the models, sorted."""
    base = root()
    if not base.is_dir():
        return ()
    return tuple(
        sorted(
            entry.name
            for entry in base.iterdir()
            if NAME.fullmatch(entry.name) and (entry / WEIGHTS_FILE).is_file()
        )
    )


def path(name: str) -> Path:
    """The folder of a model. A name is looked up, never joined to a path.

    Raises:
        ModelError: no such model; the names there are.
    """
    known = names()
    if name not in known:
        there = ", ".join(known) if known else f"none in {root()}"
        raise ModelError(f"no ready-made model {name!r}; there are: {there}")
    return root() / known[known.index(name)]


def models() -> tuple[ReadyMade, ...]:
    """All models with their cards.

    Raises:
        ModelError: a card is missing or damaged.
    """
    found = []
    for name in names():
        folder = path(name)
        try:
            card = read_json(folder / CARD_FILE)
        except (OSError, ValueError) as error:
            raise ModelError(f"{folder / CARD_FILE}: cannot be read: {error}") from None
        if not isinstance(card, dict):
            raise ModelError(f"{folder / CARD_FILE}: not an object")
        size = (folder / WEIGHTS_FILE).stat().st_size
        found.append(ReadyMade(name, folder, size, card))
    return tuple(found)

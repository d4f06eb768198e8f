"""Models by name: ``create_model("iwm", **settings)``, ``load_model(folder)``.

A new model is entered here and nowhere else. Modules are imported when asked for.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from torch import nn

from iwm.errors import ConfigError, ModelError
from iwm.models.saving import read_config

# name -> (module, factory of an untrained model, class with from_pretrained)
MODELS: dict[str, tuple[str, str, str]] = {
    "iwm": ("iwm.models.iwm", "create", "IWM"),
    "action": ("iwm.models.action", "create", "ActionIWM"),
    "embodied": ("iwm.models.embodied.model", "create", "WorldModel"),
    "permanence": ("iwm.models.permanence", "create", "ObjectPermanence"),
    "vqvae": ("iwm.models.vqvae.autoencoder", "create", "VQVAE"),
    "vqvae-dynamics": ("iwm.models.vqvae.dynamics", "create", "TokenDynamics"),
    "vrnn": ("iwm.models.aime.model", "create", "DPGMMVariationalRecurrentAutoencoder"),
}


def create_model(name: str, **settings: Any) -> nn.Module:
    """Build an untrained model from plain settings.

    Raises:
        ConfigError: no such model, or settings that do not fit.
    """
    if name not in MODELS:
        raise ConfigError(f"model.name {name!r} is unknown; known: {', '.join(sorted(MODELS))}")
    module, factory, _ = MODELS[name]
    model: nn.Module = getattr(import_module(module), factory)(**settings)
    return model


def load_model(folder: str | Path, *, trainable: bool = False) -> Any:
    """Load whatever model a folder holds, through its class's ``from_pretrained``.

    Raises:
        ModelError: no model there, a damaged one, or one this software does not know.
    """
    name = read_config(Path(folder)).get("model")
    if name not in MODELS:
        raise ModelError(f"{folder}: model {name!r} is unknown to this software; upgrade iwm")
    module, _, cls = MODELS[name]
    return getattr(import_module(module), cls).from_pretrained(folder, trainable=trainable)

"""Untrained models of every variant, for those who write clients and have no weights yet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from iwm.models.registry import create_model
from iwm.serving.config import RANDOM, ServiceConfig
from iwm.serving.dreaming import DYNAMICS, Dreamer
from iwm.serving.engine import Engine
from iwm.serving.models import STREAMS, Models, choose

VOCABULARY = ("wait", "move_forward", "move_backward", "turn_left", "turn_right", "attack")
_SHAPE = {"width": 64, "heads": 4}
_SIZE = [64, 64]


def untrained(config: ServiceConfig) -> Models:
    """Random weights, the same at every start; figures of confidence are ``null``.

    Raises:
        ModelError: a variant that does not exist.
        ConfigError: no such device.
    """
    path = Path(RANDOM)
    known = dict.fromkeys(("action", "core", *STREAMS), path)
    variant = choose(known, config.model_variant, path)
    engines = {
        name: Engine(_model(name), config.device, card={"model": f"{RANDOM}-{name}", "phase": name})
        for name in dict.fromkeys((variant, *STREAMS))
    }
    dreamer = Dreamer(_dreams(), config.device, {"model": f"{RANDOM}-{DYNAMICS}"})
    return Models(engines[variant], variant, {name: engines[name] for name in STREAMS}, dreamer)


def _dreams() -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return create_model(
            DYNAMICS,
            image_size=_SIZE,
            vocabulary=list(VOCABULARY),
            tokenizer={"image_size": _SIZE, "stem": 4, "channels": [32], "heads": 4},
            depth=2,
            detail=32,
            **_SHAPE,
        )


def _model(variant: str) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(len(variant))
        if variant == "action":
            return create_model(
                "action",
                image_size=_SIZE,
                vocabulary=list(VOCABULARY),
                history=4,
                encoder={"patch": 16, "depth": 2, **_SHAPE},
                dynamics={"depth": 2, "patch_depth": 1, **_SHAPE},
            )
        return create_model(
            "iwm",
            image_size=_SIZE,
            encoder={"patch": 16, "depth": 2, **_SHAPE},
            predictor={"depth": 2, **_SHAPE},
        )

"""Configuration of the service: bounds, and what the environment sets."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from iwm.settings import parse, settings

Positive = Annotated[int, Field(gt=0)]
Seconds = Annotated[float, Field(gt=0)]
RANDOM = "random"
"""Instead of a model folder: untrained models."""
Precision = Literal["float32", "bfloat16"]


@settings
class Limits:
    """What one request may ask for, and how many may wait."""

    max_body_bytes: Positive = 16 * 1024 * 1024
    max_pixels: Positive = 16_777_216
    """Pixels of an image, read from its header before anything is decoded."""
    max_steps: Positive = 256
    """Actions of one rollout."""
    max_patch_numbers: Positive = 4_000_000
    """Numbers of predicted patch latents in one answer (steps x patches x width)."""
    max_plan_horizon: Positive = 64
    """Actions of a plan."""
    max_plan_candidates: Positive = 1024
    """Sequences that a search rolls out together."""
    max_plan_iterations: Positive = 50
    max_plan_steps: Positive = 250_000
    """Horizon x candidates x iterations."""
    max_dream_steps: Positive = 32
    """Actions of a dream."""
    max_imagined: Positive = 256
    """Futures imagined from one state."""
    max_pending: Positive = 64
    """Requests in work or waiting; one more is answered 503."""
    max_batch: Positive = 32
    """Requests computed together."""
    max_connections: Positive = 1024
    """Clients that are connected, asking or not; one more is hung up on."""
    head_timeout_s: Seconds = 4.0
    """A request's head must have arrived by then, a new client's first one too; else 408."""
    body_timeout_s: Seconds = 4.0
    """A body must have arrived by then; else 408."""
    timeout_s: Seconds = 4.5
    """An answer must be there by then; else 503."""
    retry_after_s: Positive = 1
    """Seconds that a refused client is asked to wait."""


@settings
class ServiceConfig:
    """One service process."""

    model_path: Path | None = None
    """A model folder (config.json, model.safetensors), a folder of such folders by variant, or
    the word ``random``: untrained models of every variant, to write clients against."""
    model_variant: str | None = None
    """Which of the folder's models answers: ``core``, ``invariant``, ``equivariant``,
    ``action``; default: the folder's own choice (see :mod:`iwm.serving.models`)."""
    device: str = "auto"
    precision: Precision = "float32"
    """``bfloat16`` is used where it is measured to be faster, and refused where it is measured
    to be wrong (see :mod:`iwm.serving.precision`)."""
    registry_poll_s: Annotated[float, Field(ge=0)] = 0.0
    """Seconds between two looks whether the registry's champion moved; 0: never."""
    cors_origins: tuple[str, ...] = ()
    """Origins whose pages may call; none by default. Never with credentials."""
    image_root: Path | None = None
    """Where ``image_path`` may read; ``None`` switches it off."""
    token: str | None = None
    """Bearer token that every call but the health checks must bring."""
    host: str = "127.0.0.1"
    port: Annotated[int, Field(gt=0, lt=65536)] = 8001
    limits: Limits = Limits()


_VARIABLES = {
    "IWM_MODEL_PATH": "model_path",
    "IWM_MODEL_VARIANT": "model_variant",
    "IWM_DEVICE": "device",
    "IWM_PRECISION": "precision",
    "IWM_REGISTRY_POLL_S": "registry_poll_s",
    "IWM_IMAGE_ROOT": "image_root",
    "IWM_SERVICE_TOKEN": "token",
    "IWM_SERVICE_HOST": "host",
    "IWM_SERVICE_PORT": "port",
}


def service_config(environ: Mapping[str, str] = os.environ) -> ServiceConfig:
    """The configuration that the ``IWM_*`` variables ask for; an empty one counts as unset.

    Raises:
        ConfigError: a variable holds what its setting cannot be.
    """
    values: dict[str, Any] = {
        name: environ[variable] for variable, name in _VARIABLES.items() if environ.get(variable)
    }
    if origins := environ.get("IWM_CORS_ORIGINS"):
        values["cors_origins"] = [origin.strip() for origin in origins.split(",")]
    return parse(ServiceConfig, values, "environment")

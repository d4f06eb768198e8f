"""Configuration of one training stage, whatever the model."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from iwm.data.config import LoaderConfig
from iwm.settings import settings

Positive = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


@settings
class OptimConfig:
    """AdamW with linear warm-up and cosine decay."""

    lr: Annotated[float, Field(gt=0)] = 1e-3
    final_lr: Annotated[float, Field(ge=0)] = 1e-5
    warmup: Fraction = 0.05
    """Share of all steps."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.04
    betas: tuple[float, float] = (0.9, 0.95)
    grad_clip: Annotated[float, Field(gt=0)] = 1.0


@settings
class TrainConfig:
    """One entry under ``train`` in params.yaml."""

    model: dict[str, Any]
    """``name`` from the model registry, and that model's own settings."""
    init_from: str | None = None
    """A phase trained before, whose encoder (and what fits of its predictor) this one starts
    from; ``None`` starts from random weights, or from ``model.encoder.weights``."""
    epochs: Positive = 10
    max_steps: Positive | None = None
    """Stop after this many steps, where the epochs hold more; the rates fall to their ends
    there."""
    batch_size: Positive = 128
    """Global batch, over all ranks: windows."""
    window: Positive = 1
    """Successive frames of one episode that make a window."""
    recordings: tuple[str, ...] | None = None
    """Train on these only; ``null``: on all."""
    trajectories: str | None = None
    """A set of vectors under ``trajectories`` to train on; ``null``: the shards."""
    removals: bool = False
    """Learn also from what engines took away (``permanence`` only)."""
    seed: int = 0
    device: str = "auto"
    """``auto`` takes the first accelerator there is, else the CPU."""
    precision: Literal["fp32", "bf16"] = "bf16"
    compile: bool = False
    """Compile the model's blocks (needs a C++ compiler)."""
    sharding: Literal["ddp", "fsdp"] = "ddp"
    """What each of several processes holds: all weights, or its share of them, for models
    that are too large for one device (encoders beyond ViT-L)."""
    checkpoint_every: Positive = 100
    """Steps between checkpoints; a killed run loses at most this many."""
    log_every: Positive = 10
    deterministic: bool = True
    optim: OptimConfig = OptimConfig()
    loader: LoaderConfig = LoaderConfig()

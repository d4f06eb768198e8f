"""A trained model that fits the shards, for the stages that measure it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from iwm.config import Params
from iwm.data.reader import ShardStore
from iwm.errors import ModelError
from iwm.models.registry import load_model
from iwm.training.distributed import choose_device
from pipelines._stage import MODELS, SHARDS


def load_fitting_model(phase: str, params: Params, store: ShardStore) -> Any:
    """A phase's model on its device.

    Raises:
        ModelError: there is none, or it takes images of another size than the shards hold.
    """
    folder = MODELS / phase
    model = load_model(folder)
    check_fits(model, folder, store)
    return model.to(choose_device(params.train[phase].device if phase in params.train else "auto"))


def check_fits(model: Any, folder: Path, store: ShardStore) -> None:
    """Refuse a model that takes images of another size than the shards hold.

    Raises:
        ModelError: it does.
    """
    size = tuple(store.image_shape[:2])
    # Token dynamics take what their tokenizer takes.
    config = getattr(model.config, "tokenizer", model.config)
    if tuple(config.image_size) != size:
        raise ModelError(
            f"{folder} takes images of {tuple(config.image_size)}, the shards in {SHARDS} "
            f"hold {size} (height, width); train again or shard again"
        )

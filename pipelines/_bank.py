"""Frames that training never saw, packed with a model for its status page."""

from __future__ import annotations

from pathlib import Path

from pipelines._stage import SHARDS

FRAMES = 48


def pack_bank(folder: Path) -> None:
    """Write the bank of every model in ``folder``: itself, or those in its subfolders.

    Frames lie evenly over the held-out part of the shards.

    Raises:
        DataError: the shards cannot be read.
        ModelError: a model cannot be loaded.
    """
    import numpy as np

    from iwm.data.reader import ShardStore
    from iwm.models.saving import read_config
    from iwm.serving.engine import Engine
    from iwm.serving.models import BESIDE
    from iwm.serving.page.bank import write_bank

    store = ShardStore(SHARDS)
    rows = next((rows for split in ("test", "val") if len(rows := store.rows(split))), None)
    if rows is None:
        return
    picked = rows[np.unique(np.linspace(0, len(rows) - 1, FRAMES).astype(int))]
    images, captions = list(store.decode(picked)), [_caption(key) for key in store.keys(picked)]
    for config in sorted([*folder.glob("config.json"), *folder.glob("*/config.json")]):
        if read_config(config.parent)["model"] in BESIDE:
            continue  # knows no latents to compare by
        write_bank(config.parent, Engine.load(config.parent, "cpu"), images, captions)


def _caption(key: str) -> str:
    """``recording/000012/000034`` as a person reads it."""
    recording, episode, frame = key.rsplit("/", 2)
    return f"{recording}, episode {int(episode)}, frame {int(frame)}"

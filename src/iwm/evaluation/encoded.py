"""Play as trajectories of latents: frames of the shards, encoded by a trained model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from iwm.data.reader import Rows, ShardStore
from iwm.data.trajectories import Episode
from iwm.evaluation.play import ActionModel
from iwm.progress import Progress

_CHUNK = 512


def encode_episodes(
    store: ShardStore,
    split: str,
    model: ActionModel,
    frames: int,
    recordings: Sequence[str] | None = None,
) -> list[Episode]:
    """The split's episodes as ``z_cls`` and one-hot actions, in the model's vocabulary.

    An episode with a frame set aside, or an action unknown, in its middle gives one episode
    for each stretch between such places.

    Args:
        store: the shards.
        split: which part.
        model: encodes; its vocabulary names the actions.
        frames: whole stretches until so many are reached.
        recordings: only these; all when None.

    Raises:
        DataError: the split is empty, or an action is not in the model's vocabulary.
    """
    rows = store.rows(split, recordings)
    actions = store.actions(model.vocabulary, recordings)
    table = {name: store.table[name].to_numpy()[rows] for name in ("episode", "step")}
    rows = rows[np.lexsort((table["step"], table["episode"], store.recording_ids[rows]))]
    stretches = _stretches(store, rows, actions)
    # An equal share of every recording: they are taken in an order that mixes them.
    mixed = np.random.Generator(np.random.PCG64(0)).permutation(len(stretches))
    kept: list[int] = []
    total = 0
    for place in mixed.tolist():
        if kept and total + len(stretches[place]) > frames:
            break
        kept.append(place)
        total += len(stretches[place])
    found = []
    with Progress(f"encode {split}", total, "frames") as progress:
        for place in sorted(kept):
            found.append(_encode(store, stretches[place], actions, model, split))
            progress.advance(len(stretches[place]))
    return found


def _stretches(store: ShardStore, rows: Rows, actions: Rows) -> list[Rows]:
    """Runs of rows of one episode, without a gap, whose steps' actions are all known."""
    episode, step = (store.table[name].to_numpy()[rows] for name in ("episode", "step"))
    follows = (
        (np.diff(store.recording_ids[rows]) == 0)
        & (np.diff(episode) == 0)
        & (np.diff(step) == 1)
        & (actions[rows[:-1]] >= 0)
    )
    runs = np.split(rows, np.flatnonzero(~follows) + 1)
    return [run for run in runs if len(run) > 1]


def _encode(
    store: ShardStore, rows: Rows, actions: Rows, model: ActionModel, split: str
) -> Episode:
    device = next(model.parameters()).device
    latents: list[Any] = []
    for first in range(0, len(rows), _CHUNK):
        images = torch.from_numpy(store.decode(rows[first : first + _CHUNK])).permute(0, 3, 1, 2)
        latents.append(model.encode(images.to(device))[0].cpu().numpy())
    one_hot = np.eye(len(model.vocabulary), dtype=np.float32)
    return Episode(
        store.keys(rows[:1])[0],
        np.concatenate(latents).astype(np.float32),
        one_hot[actions[rows[:-1]]],
        store.table["reward"].to_numpy()[rows[:-1]].astype(np.float32),
        split,
    )

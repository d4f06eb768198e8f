"""Held-out play for an action-conditioned model: frames, latents, actions, whole episodes.

Everything that Phase 3 measures starts here: frames are encoded once, actions become
positions in the model's vocabulary, and windows never leave an episode.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from iwm.data.branches import BranchSet
from iwm.data.reader import ShardStore
from iwm.errors import DataError, ModelError
from iwm.progress import Progress

Array = np.ndarray[Any, Any]


class ActionModel(Protocol):
    """What evaluation needs of an action-conditioned model (see ``iwm.models.action``)."""

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """Action names."""
        ...

    @property
    def latent_dim(self) -> int:
        """D."""
        ...

    @property
    def history(self) -> int:
        """Most frames of context, the present one included."""
        ...

    def parameters(self) -> Any:
        """Weights; the first one's device is the model's."""
        ...

    def action_vectors(self, ids: Tensor, continuous: Tensor | None = None) -> Tensor:
        """Ids [...] (-1: none), continuous entries [..., C] -> vectors [..., A]."""
        ...

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images [B, 3, H, W] -> z_cls [B, D], z_patches [B, N, D]."""
        ...

    def predict(
        self,
        z_cls: Tensor,
        action: Tensor,
        z_patches: Tensor | None = None,
        history: Any | None = None,
    ) -> Any:
        """One step; an object with z_cls [B, D], z_patches, log_error [B]."""
        ...

    def rollout(self, z_cls: Tensor, actions: Tensor, history: Any | None = None) -> Any:
        """[B, D], [B, K, A] -> an object with z_cls [B, K, D], log_error [B, K]."""
        ...


@dataclass(frozen=True)
class Play:
    """One recording's held-out episodes, in order.

    ``images`` uint8 [N, 3, H, W]; ``z_cls`` [N, D] and ``z_patches`` [N, P, D] on the CPU;
    ``action`` int64 [N], taken after seeing the frame, as a position in the model's
    vocabulary (-1: unknown); ``continuous`` [N, C] or ``None``; ``episode`` int64 [N], labels
    that no other recording uses; ``run`` int64 [N]: frames of one run follow one another
    without a gap; ``choices`` int64 [V]: the recording's actions, as positions in the model's
    vocabulary.
    """

    name: str
    images: Tensor
    z_cls: Tensor
    z_patches: Tensor
    action: Tensor
    continuous: Tensor | None
    episode: Array
    run: Array
    choices: Tensor

    def __len__(self) -> int:
        return len(self.z_cls)

    def windows(self, before: int, after: int) -> Array:
        """Frames with ``before`` frames behind and ``after`` ahead, every step's action known."""
        n = len(self)
        at: Array = np.arange(before, n - after)
        if len(at) == 0 or (len(self.choices) == 0 and self.continuous is None):
            return at[:0]
        at = at[self.run[at - before] == self.run[at + after]]
        if self.continuous is None:
            known = (self.action >= 0).numpy()
            at = at[np.all([known[at + step] for step in range(after)], axis=0)]
        return at

    def vectors(self, model: ActionModel, at: Array) -> Tensor:
        """Action vectors of frames ``at`` [...] as [..., A]."""
        places = torch.from_numpy(at)
        more = None if self.continuous is None else self.continuous[places]
        return model.action_vectors(self.action[places], more)


def read_play(
    store: ShardStore,
    split: str,
    model: ActionModel,
    frames: int,
    recordings: Sequence[str] | None = None,
) -> list[Play]:
    """The split's recordings, encoded; whole episodes until ``frames`` are reached.

    Args:
        store: the shards.
        split: which part.
        model: encodes; its vocabulary names the actions.
        frames: about how many frames over all recordings, an equal share each.
        recordings: only these; all when None.

    Raises:
        ModelError: an action that the model does not know.
        DataError: the split is empty.
    """
    rows = store.rows(split, recordings)
    ids = store.recording_ids[rows]
    names = [store.recordings[i] for i in np.unique(ids)]
    found = []
    with Progress(f"encode {split}", None, "frames") as progress:
        for number in np.unique(ids):
            mine = rows[ids == number]
            found.append(
                _read_recording(store, int(number), mine, model, frames // len(names), progress)
            )
    return found


def _read_recording(
    store: ShardStore,
    number: int,
    rows: Array,
    model: ActionModel,
    frames: int,
    progress: Progress,
) -> Play:
    name = store.recordings[number]
    order = np.lexsort(
        (store.table["step"].to_numpy()[rows], store.table["episode"].to_numpy()[rows])
    )
    rows = rows[order]
    episode = store.table["episode"].to_numpy()[rows].astype(np.int64)
    _, first, lengths = np.unique(episode, return_index=True, return_counts=True)
    last = first + lengths
    # Whole episodes: the first always, then as many as fit.
    rows = rows[: last[max(0, int(np.searchsorted(last, frames, side="right")) - 1)]]
    episode = episode[: len(rows)]
    step = store.table["step"].to_numpy()[rows]
    follows = (np.diff(episode) == 0) & (np.diff(step) == 1)
    vocabulary = store.vocabulary(name)
    choices = positions(model, vocabulary, f"{store.folder}: recording {name}")
    own = torch.from_numpy(store.table["action"].to_numpy()[rows].astype(np.int64))
    action = torch.full_like(own, -1)
    known = own >= 0
    if len(choices):
        action[known] = choices[own[known]]
    vectors = store.action_vectors
    is_continuous = store.info.recordings[name].action_dim > 0 and vectors is not None
    images = torch.from_numpy(store.decode(rows)).permute(0, 3, 1, 2).contiguous()
    z_cls, z_patches = encode(model, images, progress)
    return Play(
        name=name,
        images=images,
        z_cls=z_cls,
        z_patches=z_patches,
        action=action,
        continuous=torch.from_numpy(vectors[rows])
        if is_continuous and vectors is not None
        else None,
        episode=(np.int64(number) << 32) + episode,
        run=np.concatenate([[0], np.cumsum(~follows)]),
        choices=choices,
    )


def positions(model: ActionModel, names: tuple[str, ...], where: str) -> Tensor:
    """Positions of action names in the model's vocabulary, int64 [len(names)].

    Raises:
        ModelError: a name that the model lacks; names both vocabularies.
    """
    missing = [name for name in names if name not in model.vocabulary]
    if missing:
        raise ModelError(
            f"{where} has the action {missing[0]!r}, which the model does not know; "
            f"it knows {', '.join(model.vocabulary)}"
        )
    return torch.tensor([model.vocabulary.index(name) for name in names], dtype=torch.int64)


@torch.no_grad()
def encode(
    model: ActionModel, images: Tensor, progress: Progress | None = None, batch: int = 256
) -> tuple[Tensor, Tensor]:
    """Latents of images uint8 [N, 3, H, W], on the CPU: [N, D] and [N, P, D]."""
    device = next(model.parameters()).device
    latents = []
    for chunk in torch.split(images, batch):
        latents.append([z.cpu() for z in model.encode(chunk.to(device))])
        if progress is not None:
            progress.advance(len(chunk))
    cls, patches = zip(*latents, strict=True)
    return torch.cat(cls), torch.cat(patches)


@dataclass(frozen=True)
class States:
    """Moments to predict from: M states and the actions that could follow.

    ``z_cls`` [M, D], ``z_patches`` [M, P, D]; ``past_z`` [M, h, D] and ``past_action``
    [M, h, A]: earlier frames, oldest first, and what was done after each; ``actions``
    [M, V, A]: the vectors that may be predicted; ``claimed`` int64 [M]: which one was taken
    (0 where there is only it); ``episode`` int64 [M].
    """

    name: str
    z_cls: Tensor
    z_patches: Tensor
    past_z: Tensor
    past_action: Tensor
    actions: Tensor
    claimed: Array
    episode: Array

    def __len__(self) -> int:
        return len(self.z_cls)


@dataclass(frozen=True)
class Branches:
    """A branch set, encoded.

    ``states`` is its context as a model sees it; ``outcome`` [N, A, D] and ``outcome_patches``
    [N, A, P, D] the latents after each action, ``valid`` bool [N, A], ``distinct`` bool
    [N, A, A] as in :class:`BranchSet`; ``removed`` and ``teleported`` [N, D], meaningful where
    ``has_removed`` and ``has_teleported`` bool [N].
    """

    source: BranchSet
    states: States
    outcome: Tensor
    outcome_patches: Tensor
    valid: Array
    distinct: Array
    removed: Tensor
    has_removed: Array
    teleported: Tensor
    has_teleported: Array


def encode_branches(model: ActionModel, source: BranchSet, label: int) -> Branches:
    """Encode a branch set.

    Args:
        model: encodes, and names the actions.
        source: the set.
        label: keeps its episodes apart from those of other sets and recordings.

    Raises:
        ModelError: an action that the model does not know, or frames of another size.
    """
    choices = positions(model, source.vocabulary, f"branch set {source.name}")
    count, context = source.frames.shape[:2]
    keep = min(context, model.history)
    with Progress(f"encode branches {source.name}", None, "frames") as progress:

        def latents(frames: Array) -> tuple[Tensor, Tensor]:
            flat = np.array(frames.reshape(-1, *frames.shape[-3:]))  # a copy: the file is read only
            return encode(model, torch.from_numpy(flat).permute(0, 3, 1, 2), progress)

        past, _ = latents(source.frames[:, context - keep : -1]) if keep > 1 else (None, None)
        z_cls, z_patches = latents(source.frames[:, -1])
        outcome, outcome_patches = latents(source.outcomes)
        removed, _ = latents(source.removed)
        teleported, _ = latents(source.teleported)
    width = z_cls.shape[1]
    vectors = model.action_vectors(choices).cpu()
    done = torch.from_numpy(np.array(source.actions[:, context - keep :]))
    done = torch.where(done >= 0, choices[done.clamp(min=0)], done)
    states = States(
        name=source.name,
        z_cls=z_cls,
        z_patches=z_patches,
        past_z=z_cls.new_zeros(count, 0, width) if past is None else past.view(count, -1, width),
        past_action=model.action_vectors(done).cpu(),
        actions=vectors.expand(count, -1, -1),
        claimed=np.array(source.taken),
        episode=(np.int64(1_000_000 + label) << 32) + np.asarray(source.episode),
    )
    return Branches(
        source=source,
        states=states,
        outcome=outcome.view(count, len(choices), width),
        outcome_patches=outcome_patches.view(count, len(choices), *outcome_patches.shape[1:]),
        valid=np.array(source.valid),
        distinct=np.array(source.distinct),
        removed=removed,
        has_removed=np.array(source.has_removed),
        teleported=teleported,
        has_teleported=np.array(source.has_teleported),
    )


def states_of(model: ActionModel, play: Play, at: Array) -> States:
    """The frames ``at`` of held-out play as states; the recording's actions may follow each."""
    before = model.history - 1
    past = at[:, None] + np.arange(-before, 0)
    width = play.z_cls.shape[1]
    if play.continuous is None:
        order = {int(place): i for i, place in enumerate(play.choices)}
        claimed = np.array([order[int(a)] for a in play.action[torch.from_numpy(at)]], np.int64)
        actions = model.action_vectors(play.choices).cpu().expand(len(at), -1, -1)
    else:
        claimed = np.zeros(len(at), np.int64)
        actions = play.vectors(model, at).cpu().unsqueeze(1)
    return States(
        name=play.name,
        z_cls=play.z_cls[torch.from_numpy(at)],
        z_patches=play.z_patches[torch.from_numpy(at)],
        past_z=play.z_cls[torch.from_numpy(past)].view(len(at), before, width),
        past_action=play.vectors(model, past).cpu(),
        actions=actions,
        claimed=claimed,
        episode=play.episode[at],
    )


def make_history(z_cls: Tensor, action: Tensor) -> Any:
    """The model's history object, or ``None`` when there is no earlier frame."""
    from iwm.models.action import History

    return History(z_cls=z_cls, action=action) if z_cls.shape[1] else None


def require(parts: list[Play], before: int, after: int, split: str) -> list[Array]:
    """Windows of every recording.

    Raises:
        DataError: there is none at all.
    """
    found = [play.windows(before, after) for play in parts]
    if not any(len(at) for at in found):
        raise DataError(
            f"the split {split} has no run of {before + after + 1} frames whose actions are known; "
            "record longer episodes or change ingest.split"
        )
    return found

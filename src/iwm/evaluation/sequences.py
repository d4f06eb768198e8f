"""Windows of held-out play, and what a generative model imagines from their first frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self

import numpy as np
import torch
from torch import Tensor

from iwm.data.reader import ShardStore
from iwm.errors import DataError
from iwm.evaluation.reconstruction import Tokenizer

Array = np.ndarray[Any, Any]


class Dream(Protocol):
    """An imagined episode under way (see ``iwm.models.vqvae.dynamics``)."""

    @property
    def tokens(self) -> Tensor | None:
        """Tokens of the present frame, int64 [B, h, w]; None before the first step."""
        ...

    def step(self, actions: Tensor) -> Tensor:
        """Actions int64 [B] -> the next frames, uint8 [B, H, W, 3]."""
        ...


class Dreamer(Protocol):
    """What evaluation needs of a generative model of play."""

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """Action names."""
        ...

    @property
    def context(self) -> int:
        """Most frames it looks back on."""
        ...

    @property
    def tokenizer(self) -> Tokenizer:
        """Makes tokens of pictures, and pictures of tokens."""
        ...

    def start(
        self, frames: Tensor, actions: Tensor, *, seed: int = 0, temperature: float = 0.0
    ) -> Dream:
        """Begin at frames uint8 [B, T, H, W, 3] with the actions [B, T-1] between them; at
        temperature 0 dreams are the mean of what may come, above it one of those.
        """
        ...

    def parameters(self) -> Any:
        """Weights; the first one's device is the model's."""
        ...


@dataclass(frozen=True)
class Windows:
    """N windows of T frames, each inside one episode.

    ``frames`` uint8 [N, T, H, W, 3]; ``actions`` int64 [N, T-1], places in the model's
    vocabulary, ``actions[:, t]`` leads from frame t to frame t + 1; ``episode`` [N]: labels that
    no other recording uses; ``choices`` [N, V] bool: the actions of the window's recording.
    """

    frames: Tensor
    actions: Tensor
    episode: Array
    choices: Tensor

    def __len__(self) -> int:
        return len(self.frames)

    def take(self, at: Any) -> Self:
        """Some of the windows."""
        return replace(
            self,
            frames=self.frames[at],
            actions=self.actions[at],
            episode=self.episode[at],
            choices=self.choices[at],
        )

    def random_actions(self, steps: int, seed: int) -> Tensor:
        """Actions int64 [N, steps] of each window's own recording, uniformly, the true ones not
        excluded.
        """
        generator = torch.Generator().manual_seed(seed)
        return torch.multinomial(
            self.choices.double(), steps, replacement=True, generator=generator
        )


def read_windows(
    store: ShardStore,
    splits: Sequence[str],
    vocabulary: Sequence[str],
    *,
    frames: int,
    count: int,
    seed: int,
    recordings: Sequence[str] | None = None,
) -> Windows:
    """Windows of ``frames`` frames, spread evenly over the episodes.

    Args:
        store: the shards.
        splits: which parts.
        vocabulary: the model's action names.
        frames: T.
        count: windows, at most.
        seed: of the choice.
        recordings: only these; all when None.

    Raises:
        DataError: a split is empty, an action is not in the vocabulary, or no episode is long
            enough.
    """
    rows = np.concatenate([store.rows(split, recordings) for split in splits])
    step, number = (store.table[name].to_numpy() for name in ("step", "episode"))
    episode = (store.recording_ids.astype(np.int64) << 32) + number
    rows = rows[np.lexsort((step[rows], episode[rows]))]
    action = store.actions(vocabulary, recordings)[rows]
    episode, step = episode[rows], step[rows]
    breaks = (np.diff(episode) != 0) | (np.diff(step) != 1) | (action[:-1] < 0)
    run = np.concatenate([[0], np.cumsum(breaks)])
    starts = np.arange(max(0, len(rows) - frames + 1))
    starts = starts[run[starts] == run[starts + frames - 1]]
    if len(starts) == 0:
        raise DataError(
            f"{store.folder}: no episode of {' and '.join(splits)} has {frames} frames in a row "
            "whose actions are known; record longer episodes"
        )
    starts = starts[_spread(episode[starts], np.random.default_rng(seed))[:count]]
    places = starts[:, None] + np.arange(frames)
    images = store.decode(rows[places].ravel()).reshape(*places.shape, *store.image_shape)
    choices = np.zeros((len(starts), len(vocabulary)), bool)
    for place, row in enumerate(rows[starts]):
        names = store.vocabulary(store.recordings[store.recording_ids[row]])
        choices[place, [list(vocabulary).index(name) for name in names]] = True
    return Windows(
        torch.from_numpy(images),
        torch.from_numpy(action[places[:, :-1]]),
        episode[starts],
        torch.from_numpy(choices),
    )


def _spread(episode: Array, generator: np.random.Generator) -> Array:
    """An order in which the k-th member of every episode stands before any k+1-th."""
    shuffled = generator.permutation(len(episode))
    _, label = np.unique(episode[shuffled], return_inverse=True)
    order = np.argsort(label, kind="stable")
    begin = np.searchsorted(label[order], np.arange(label.max() + 1))
    turn = np.empty(len(label), np.int64)
    turn[order] = np.arange(len(label)) - begin[label[order]]
    found: Array = shuffled[np.argsort(turn, kind="stable")]
    return found


@dataclass(frozen=True)
class Imagined:
    """``frames`` uint8 [N, K, H, W, 3] and ``tokens`` int64 [N, h, w] of the first of them."""

    frames: Tensor
    tokens: Tensor


@torch.no_grad()
def imagine(
    model: Dreamer,
    windows: Windows,
    actions: Tensor,
    *,
    present: int,
    context: int,
    batch: int = 64,
    seed: int = 0,
    temperature: float = 0.0,
) -> Imagined:
    """What a model imagines after the frame ``present`` of each window.

    Args:
        model: in eval mode.
        windows: N of them.
        actions: int64 [N, K], what is done from the present frame on.
        present: the last frame that the model is shown, counted from 0.
        context: frames shown, the present one included.
        batch: windows at once.
        seed: of what the model draws; the same seed draws the same.
        temperature: of what it draws; 0: the mean.

    Returns:
        Frames and tokens on the CPU.
    """
    device = next(model.parameters()).device
    first = present - context + 1
    frames, tokens = [], []
    for at in torch.split(torch.arange(len(windows)), batch):
        shown = windows.frames[at, first : present + 1].to(device)
        taken = windows.actions[at, first:present].to(device)
        dream = model.start(shown, taken, seed=seed, temperature=temperature)
        steps = []
        for chosen in actions[at].unbind(1):
            steps.append(dream.step(chosen.to(device)).cpu())
            if len(steps) == 1:
                assert dream.tokens is not None  # one step was taken
                tokens.append(dream.tokens.cpu())
        frames.append(torch.stack(steps, 1))
    return Imagined(torch.cat(frames), torch.cat(tokens))

"""A world whose state is seen in every frame, and dreamers that know it, copy it, or are blind."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from iwm.evaluation.sequences import Windows

VOCABULARY = ("stay", "turn_left", "turn_right", "up", "down")
MOVES = torch.tensor([(0, 0), (0, 5), (0, -5), (-5, 0), (5, 0)])
"""Rows and columns that what is seen moves by: a view that turns left moves it right."""
SIZE = 64


def _ground(seed: int) -> Tensor:
    """A texture that recurs only every 64 pixels."""
    random = np.random.default_rng(seed)
    rough = random.uniform(0, 255, (8, 8, 3))
    fine = np.kron(rough, np.ones((8, 8, 1)))
    fine[8:24, 8:24] = 255
    return torch.from_numpy(fine.astype(np.uint8))


GROUND = _ground(0)


def views(places: Tensor) -> Tensor:
    """The pictures at places int64 [N, 2]: uint8 [N, 64, 64, 3]."""
    return torch.stack([GROUND.roll(place.tolist(), (0, 1)) for place in places])


class Tokenizer:
    """Tokens of 8x8 patches: the level of their red, in 32 steps."""

    codebook_size = 32
    bits_per_image = 64 * 5.0
    grid = (8, 8)

    def encode(self, images: Tensor) -> Tensor:
        patches = images[..., 0].float().unfold(1, 8, 8).unfold(2, 8, 8).mean((-1, -2))
        return (patches / 8).long()

    def decode(self, tokens: Tensor) -> Tensor:
        levels = (tokens * 8 + 4).to(torch.uint8)
        return levels.repeat_interleave(8, 1).repeat_interleave(8, 2)[..., None].repeat(1, 1, 1, 3)

    def parameters(self) -> object:
        return iter([torch.zeros(1)])


@dataclass
class Dreaming:
    model: Dreamer
    places: Tensor
    tokens: Tensor | None = None

    def step(self, actions: Tensor) -> Tensor:
        self.places = self.places + self.model.moves[actions]
        frames = views(self.places)
        self.tokens = self.model.tokenizer.encode(frames)
        return frames


@dataclass
class Dreamer:
    """Dreams by ``moves``: the true ones, none at all, or the same for every action."""

    moves: Tensor = field(default_factory=lambda: MOVES)
    vocabulary: tuple[str, ...] = VOCABULARY
    context: int = 4
    tokenizer: Tokenizer = field(default_factory=Tokenizer)

    def start(
        self, frames: Tensor, actions: Tensor, *, seed: int = 0, temperature: float = 0.0
    ) -> Dreaming:
        assert actions.shape == (len(frames), frames.shape[1] - 1)
        return Dreaming(self, torch.stack([_place(frame) for frame in frames[:, -1]]))

    def parameters(self) -> object:
        return iter([torch.zeros(1)])


def _place(frame: Tensor) -> Tensor:
    """The shift at which the ground is what is seen."""
    spectrum = (
        torch.fft.rfft2(frame.float().mean(-1)) * torch.fft.rfft2(GROUND.float().mean(-1)).conj()
    )
    best = torch.fft.irfft2(spectrum).flatten().argmax()
    return torch.stack([best // SIZE, best % SIZE])


PERFECT, COPYING, BLIND = Dreamer(), Dreamer(0 * MOVES), Dreamer(MOVES[2].expand(5, 2))


def windows(count: int = 24, frames: int = 14, episodes: int = 8, seed: int = 0) -> Windows:
    """Windows of random play."""
    generator = torch.Generator().manual_seed(seed)
    actions = torch.randint(len(VOCABULARY), (count, frames - 1), generator=generator)
    start = torch.randint(SIZE, (count, 1, 2), generator=generator)
    places = torch.cat([start, start + MOVES[actions].cumsum(1)], 1)
    pictures = views(places.flatten(0, 1)).unflatten(0, (count, frames))
    known = torch.ones(count, len(VOCABULARY), dtype=torch.bool)
    return Windows(pictures, actions, np.arange(count) % episodes, known)

"""A world where everything is known: a frame is one colour, an action shifts one channel."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from iwm.data.branches import BranchSet
from iwm.evaluation.play import Play, encode
from iwm.models.iwm import Prediction

NAMES = ("stay", "red", "green", "blue")
SHIFT = np.array([(0, 0, 0), (20, 0, 0), (0, 20, 0), (0, 0, 20)])


class ColourModel:
    """Latents are mean colours. ``knows`` its actions, or predicts that nothing happens.

    ``noise``: standard deviation of its prediction's error, which it expects.
    """

    latent_dim, history, aug_dim = 3, 2, 4
    vocabulary: tuple[str, ...] = NAMES

    def __init__(self, knows: bool = True, noise: float = 0.0, device: str = "cpu") -> None:
        self.knows, self.noise = knows, noise
        self.generator = torch.Generator().manual_seed(0)

    def parameters(self) -> Any:
        return iter([torch.zeros(1)])

    def action_vectors(self, ids: Tensor, continuous: Tensor | None = None) -> Tensor:
        return torch.nn.functional.one_hot(ids.clamp(min=0), 4) * (ids >= 0).unsqueeze(-1) * 1.0

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        z = images.float().mean((2, 3))
        return z, z[:, None]

    def predict(
        self, z_cls: Tensor, action: Tensor, z_patches: Any = None, history: Any = None
    ) -> Prediction:
        moved = z_cls + action @ torch.from_numpy(SHIFT).float() if self.knows else z_cls
        error = self.noise * torch.randn(moved.shape, generator=self.generator)
        expected = torch.full(moved.shape[:-1], max(self.noise, 1e-3)).log()
        return Prediction(moved + error, None if z_patches is None else z_patches, expected)

    def rollout(self, z_cls: Tensor, actions: Tensor, history: Any = None) -> Prediction:
        found, errors = [], []
        for step in actions.unbind(1):
            one = self.predict(z_cls, step)
            z_cls = one.z_cls
            found.append(z_cls)
            errors.append(one.log_error)
        return Prediction(torch.stack(found, 1), None, torch.stack(errors, 1))


def picture(colour: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Colours [..., 3] as frames uint8 [..., 8, 8, 3]."""
    return np.broadcast_to(colour[..., None, None, :], (*colour.shape[:-1], 8, 8, 3)).astype(
        np.uint8
    )


def make_play(
    model: Any, seed: int, episodes: int = 8, steps: int = 14, name: str = "colours"
) -> Play:
    """Episodes of random actions; of no more than 20 steps, colours do not overflow."""
    random = np.random.default_rng(seed)
    frames, actions = [], []
    for _ in range(episodes):
        taken = random.integers(0, len(NAMES), steps)
        start = random.integers(5, 15, 3)
        moves = np.cumsum(SHIFT[taken[:-1]], 0)
        frames.append(picture(np.vstack([start, start + moves])))
        taken[-1] = -1
        actions.append(taken)
    images = torch.from_numpy(np.concatenate(frames)).permute(0, 3, 1, 2)
    z_cls, z_patches = encode(model, images)
    episode = 1000 * seed + np.repeat(np.arange(episodes), steps)
    return Play(
        name=name,
        images=images,
        z_cls=z_cls,
        z_patches=z_patches,
        action=torch.from_numpy(np.concatenate(actions)),
        continuous=None,
        episode=episode,
        run=np.repeat(np.arange(episodes), steps),
        choices=torch.arange(len(NAMES)),
    )


def make_branches(seed: int, states: int = 24, name: str = "colours") -> BranchSet:
    """States with every action's outcome; what is removed or teleported changes the colour."""
    random = np.random.default_rng(seed)
    before = random.integers(50, 120, (states, 3))
    led = random.integers(0, len(NAMES), states)
    present = before + SHIFT[led]
    taken = random.integers(0, len(NAMES), states)
    outcomes = present[:, None] + SHIFT
    truth = outcomes[np.arange(states), taken]
    valid = np.ones((states, len(NAMES)), bool)
    valid[0] = np.arange(len(NAMES)) == taken[0]
    return BranchSet(
        name=name,
        source="procedural",
        game="colours",
        seed=seed,
        vocabulary=NAMES,
        frames=np.stack([picture(before), picture(before), picture(present)], 1),
        actions=np.stack([np.zeros_like(led), led], 1),
        outcomes=picture(outcomes),
        valid=valid,
        distinct=~np.eye(len(NAMES), dtype=bool)[None].repeat(states, 0),
        episode=np.arange(states) // 3,
        step=np.zeros(states, np.int64),
        taken=taken,
        position=np.full((states, 3), np.nan),
        removed=picture(truth + 25),
        has_removed=np.arange(states) % 2 == 0,
        teleported=picture(truth - 45),
        has_teleported=np.ones(states, bool),
    )

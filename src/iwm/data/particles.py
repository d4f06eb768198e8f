"""A small world of particles: vectors with inertia, bounces and pushes, and no pictures.

A driven body glides in a box under the force of its actions; free bodies glide without
friction. Walls are springs, so that a bounce takes some thirteen steps; the driven body pushes the
free ones away when it comes near. The reward is how near it is to the first free body. Every
number is known, whole batches of episodes run at once, and the same seed gives the same bytes.

Lengths are in half boxes: walls stand at -1 and 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from iwm.data.config import ParticlesConfig
from iwm.data.trajectories import Episode

Floats = npt.NDArray[np.float64]

STEP_S = 0.06
"""Seconds from one state to the next."""
ACTION_DIM = 2
_SUBSTEPS = 4
_FORCE, _DRAG = 3.0, 1.2  # of the driven body: at most 2.5 half boxes a second
_WALL = 15.0  # per second squared: a bounce takes some thirteen steps
_MARGIN = 0.4  # the springs begin before the wall
_PUSH, _REACH = 0.5, 0.3  # largest acceleration of a free body, and the width of its Gaussian
_SPEED = (0.4, 0.9)  # of free bodies at the start


@dataclass
class Particles:
    """E episodes side by side: ``place`` and ``speed`` [E, bodies, 2]; body 0 is driven."""

    place: Floats
    speed: Floats

    @classmethod
    def start(cls, episodes: int, bodies: int, rng: np.random.Generator) -> Particles:
        """Bodies anywhere; the driven one at rest."""
        place = rng.uniform(-0.85, 0.85, (episodes, bodies, 2))
        angle = rng.uniform(0, 2 * np.pi, (episodes, bodies))
        size = rng.uniform(*_SPEED, (episodes, bodies))
        size[:, 0] = 0.0
        return cls(place, size[..., None] * np.stack([np.cos(angle), np.sin(angle)], -1))

    @property
    def states(self) -> npt.NDArray[np.float32]:
        """[E, 4 bodies]: of each body x, y, vx, vy."""
        values = np.concatenate([self.place, self.speed], -1)
        states: npt.NDArray[np.float32] = values.reshape(len(values), -1).astype(np.float32)
        return states

    def step(self, action: Floats) -> npt.NDArray[np.float32]:
        """Move on by :data:`STEP_S` under forces [E, 2] in [-1, 1]; returns rewards [E]."""
        push = np.clip(action, -1, 1) * _FORCE
        for _ in range(_SUBSTEPS):
            pull = -_WALL * (self.place - np.clip(self.place, -1 + _MARGIN, 1 - _MARGIN))
            pull[:, 0] += push - _DRAG * self.speed[:, 0]
            apart = self.place[:, 1:] - self.place[:, :1]
            near = np.exp(-np.square(apart).sum(-1, keepdims=True) / (2 * _REACH**2))
            pull[:, 1:] += _PUSH * near * apart / _REACH
            # Semi-implicit Euler keeps the energy of the free bodies.
            self.speed += pull * (STEP_S / _SUBSTEPS)
            self.place += self.speed * (STEP_S / _SUBSTEPS)
        away = np.linalg.norm(self.place[:, 1] - self.place[:, 0], axis=-1)
        rewards: npt.NDArray[np.float32] = (-away).astype(np.float32)
        return rewards


def state_names(bodies: int) -> tuple[str, ...]:
    """Names of a state's numbers, e.g. ``body1.vx``."""
    return tuple(f"body{i}.{part}" for i in range(bodies) for part in ("x", "y", "vx", "vy"))


def velocities(bodies: int) -> tuple[int, ...]:
    """For each number of a state, where its velocity stands; -1 for the velocities."""
    return tuple(place for i in range(bodies) for place in (4 * i + 2, 4 * i + 3, -1, -1))


def simulate(config: ParticlesConfig) -> list[Episode]:
    """Episodes under forces that are held for a while and then drawn anew."""
    rng = np.random.Generator(np.random.PCG64(config.seed))
    world = Particles.start(config.episodes, config.bodies, rng)
    force, left = np.zeros((config.episodes, ACTION_DIM)), np.zeros(config.episodes, np.int64)
    states: list[Any] = [world.states]
    actions, rewards = [], []
    for _ in range(config.steps):
        drawn = rng.uniform(-1, 1, force.shape)
        # A third of the time the body glides.
        drawn *= rng.random((len(drawn), 1)) > 1 / 3
        hold = rng.integers(config.hold[0], config.hold[1] + 1, len(drawn))
        ended = left == 0
        force, left = np.where(ended[:, None], drawn, force), np.where(ended, hold, left) - 1
        actions.append(force.astype(np.float32))
        rewards.append(world.step(force))
        states.append(world.states)
    columns = (np.stack(states, 1), np.stack(actions, 1), np.stack(rewards, 1))
    return [
        Episode(f"particles/{number:05d}", state, action, reward)
        for number, (state, action, reward) in enumerate(zip(*columns, strict=True))
    ]

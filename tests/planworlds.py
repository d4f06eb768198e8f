"""Small worlds whose best plans are known."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from iwm.planning.dynamics import Box, Discrete, Trajectories

MOVES = Discrete(("north", "south", "east", "west"))
FORCE = Box((-1.0,), (1.0,))


class Grid:
    """A walled 5x5 grid; the latent is the position."""

    steps = torch.tensor([[0, 1], [0, -1], [1, 0], [-1, 0]])

    def __init__(self, start: tuple[int, int] = (0, 0)) -> None:
        self.start = torch.tensor(start)
        self.rolled_out = 0

    def rollout(self, actions: Tensor) -> Trajectories:
        self.rolled_out += len(actions)
        place, places = self.start.expand(len(actions), 2), []
        for step in actions.unbind(1):
            place = (place + self.steps[step]).clamp(0, 4)
            places.append(place)
        latents = torch.stack(places, 1).float()
        return Trajectories(latents, latents.sum(-1).mul(-0.1))

    def optimum(self, cost: object, horizon: int) -> float:
        every = torch.tensor(list(itertools.product(range(4), repeat=horizon)))
        return float(cost(self.rollout(every)).min())  # type: ignore[operator]


class DoubleIntegrator:
    """A mass pushed along a line: the latent is (position, speed), dt = 0.5."""

    def __init__(self, position: float = 1.0, speed: float = 0.0) -> None:
        self.state = (position, speed)

    def rollout(self, actions: Tensor) -> Trajectories:
        place = torch.full((len(actions),), self.state[0])
        speed = torch.full((len(actions),), self.state[1])
        states = []
        for force in actions[..., 0].unbind(1):
            speed = speed + 0.5 * force
            place = place + 0.5 * speed
            states.append(torch.stack([place, speed], -1))
        return Trajectories(torch.stack(states, 1))

    def optimum(self, horizon: int) -> float:
        """The least mean squared position over the horizon, by projected gradient descent."""
        actions = torch.zeros(1, horizon, 1, requires_grad=True)
        optimiser = torch.optim.Adam([actions], lr=0.05)
        for _ in range(600):
            optimiser.zero_grad()
            squared_position(self.rollout(actions)).sum().backward()
            optimiser.step()
            with torch.no_grad():
                actions.clamp_(-1, 1)
        return float(squared_position(self.rollout(actions)).detach())


def squared_position(trajectories: Trajectories) -> Tensor:
    return trajectories.latents[..., 0].square().mean(1)

"""The agents' world model of the grid, and plans imagined with it.

The transition model is a small network that learns from random walks where actions lead. It is
asked once for every cell and action; all plans are then made and imagined in what it answered,
so that a wrong prediction makes a wrong plan.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from iwm.agents.grid.world import MOVES, cell_of, moved


class TransitionModel(nn.Module):
    """(column, row, action) -> logits of the next column and row.

    Args:
        size: cells along a side.
        width: of the hidden layer.
    """

    def __init__(self, size: int, width: int = 64) -> None:
        super().__init__()
        self.size = size
        self.body = nn.Sequential(
            nn.Linear(2 * size + len(MOVES), width), nn.ReLU(), nn.Linear(width, 2 * size)
        )

    def forward(self, position: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Logits ``[..., size]`` of the next column, and of the next row."""
        one = F.one_hot(position, self.size).flatten(-2)
        logits = self.body(torch.cat((one, F.one_hot(action, len(MOVES))), -1).float())
        column, row = logits.chunk(2, -1)
        return column, row


def learn_transitions(size: int, *, updates: int, seed: int) -> tuple[TransitionModel, float]:
    """Train a model on random walks of 512 walkers.

    Returns:
        The model, and the share of all (cell, action) pairs whose outcome it predicts exactly.
    """
    draw = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = TransitionModel(size)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    position = torch.randint(size, (512, 2), generator=draw)
    for _ in range(updates):
        action = torch.randint(len(MOVES), (512,), generator=draw)
        after = moved(position, action, size)
        column, row = model(position, action)
        loss = F.cross_entropy(column, after[:, 0]) + F.cross_entropy(row, after[:, 1])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        position = after
    places, actions = _everything(size)
    right = model_table(model).flatten() == cell_of(moved(places, actions, size), size)
    return model, float(right.float().mean())


def _everything(size: int) -> tuple[Tensor, Tensor]:
    """All cells ``[size * size * 5, 2]`` with all actions."""
    cells = torch.arange(size * size).repeat_interleave(len(MOVES))
    actions = torch.arange(len(MOVES)).repeat(size * size)
    return torch.stack((cells % size, cells // size), -1), actions


@torch.no_grad()
def model_table(model: TransitionModel) -> Tensor:
    """Cells ``[size * size, 5]`` that the model expects after every action in every cell."""
    places, actions = _everything(model.size)
    column, row = model(places, actions)
    cells: Tensor = row.argmax(-1) * model.size + column.argmax(-1)
    return cells.reshape(-1, len(MOVES))


class Imagination:
    """Plans in a learned model.

    Args:
        model: what happens where.
    """

    def __init__(self, model: TransitionModel) -> None:
        self.size = model.size
        self.after = model_table(model)
        cells = self.size**2
        self.horizon = 2 * self.size
        """Steps looked ahead; the longest walk on the grid is 2 x size - 2."""
        # steps[c, g]: Bellman's equation, iterated until the farthest goal is known.
        steps = torch.full((cells, cells), self.horizon)
        steps.fill_diagonal_(0)
        for _ in range(self.horizon):
            steps = torch.minimum(steps, steps[self.after].amin(1) + 1)
        self.steps = steps
        """int64 ``[cells, cells]``: imagined steps from a cell to a goal; ``horizon``: no way."""

        everywhere = torch.arange(cells)
        self.action = self._first(everywhere[:, None], everywhere[None])
        """int64 ``[cells, cells]``: the first action of the shortest imagined way."""

    def _first(self, cell: Tensor, goal: Tensor) -> Tensor:
        """Of ways of equal length that whose rest is closest to the diagonal; stay if none."""
        outcome = self.after[cell]
        remaining = self.steps[outcome, goal[..., None]]
        column = (outcome % self.size - (goal % self.size)[..., None]).abs()
        row = (outcome // self.size - (goal // self.size)[..., None]).abs()
        return (remaining * 4 * self.size + (column - row).abs()).argmin(-1)

    def imagine(self, cell: Tensor, goal: Tensor) -> Tensor:
        """Ways ``[M, horizon, 2]`` from cells ``[M]`` to goals ``[M]``, then at rest."""
        path = [cell]
        for _ in range(self.horizon - 1):
            path.append(self.after[path[-1], self.action[path[-1], goal]])
        cells = torch.stack(path, 1)
        return torch.stack((cells % self.size, cells // self.size), -1)

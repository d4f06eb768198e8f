"""The learned model of the grid, and plans made in it."""

from __future__ import annotations

import pytest
import torch

from iwm.agents.grid.imagination import Imagination, TransitionModel, learn_transitions


@pytest.fixture(scope="module")
def imagination() -> Imagination:
    model, exact = learn_transitions(6, updates=100, seed=0)
    assert exact == 1.0
    return Imagination(model)


def test_steps_are_the_ways_length(imagination: Imagination) -> None:
    cells = torch.arange(36)
    across = (cells[:, None] % 6 - cells % 6).abs() + (cells[:, None] // 6 - cells // 6).abs()
    assert (imagination.steps == across).all()


def test_ways_arrive_and_stay(imagination: Imagination) -> None:
    start, goal = torch.tensor([0, 35, 7]), torch.tensor([35, 3, 7])
    ways = imagination.imagine(start, goal)
    assert ways.shape == (3, 12, 2)
    assert ways[:, 0].tolist() == [[0, 0], [5, 5], [1, 1]]
    assert ways[:, -1].tolist() == [[5, 5], [3, 0], [1, 1]]
    assert (ways.diff(dim=1).abs().sum(-1) <= 1).all()


def test_plans_follow_the_model_and_not_the_grid() -> None:
    """A model that thinks that nothing ever moves finds no way."""

    class Frozen(TransitionModel):
        def forward(
            self, position: torch.Tensor, action: torch.Tensor
        ) -> tuple[torch.Tensor, torch.Tensor]:
            here = torch.nn.functional.one_hot(position, self.size).float()
            return here[..., 0, :], here[..., 1, :]

    frozen = Imagination(Frozen(4))
    assert (frozen.steps[0, 1:] == frozen.horizon).all()
    assert (frozen.action == 0).all()

from dataclasses import dataclass

import pytest
import torch

from iwm.errors import ConfigError
from iwm.planning.dynamics import Discrete
from iwm.planning.recall import RecallingDynamics, Shown


@dataclass
class Found:
    z_cls: torch.Tensor
    log_error: torch.Tensor


class Drifting:
    """A walk on the integers whose every step is a tenth too long."""

    vocabulary = ("back", "on")
    seen = 0

    def action_vectors(self, ids, continuous=None):
        return (2.0 * ids - 1).unsqueeze(-1)

    def rollout(self, z_cls, actions, history=None):
        self.seen += len(z_cls)
        latents = z_cls.unsqueeze(1) + 1.1 * actions.cumsum(1)
        return Found(latents, torch.zeros(latents.shape[:2]))


PLACES = torch.arange(-3.0, 4.0).unsqueeze(1)
SPACE = Discrete(("back", "on"))


def test_errors_do_not_add_up_among_remembered_places():
    dynamics = RecallingDynamics(Drifting(), SPACE, torch.zeros(1), PLACES, 0.3)
    found = dynamics.rollout(torch.tensor([[1, 1, 1], [1, 0, 0]])).latents.squeeze(-1)
    assert found.tolist() == [[1, 2, 3], [1, 0, -1]]


def test_what_is_near_nothing_stays_as_predicted():
    dynamics = RecallingDynamics(Drifting(), SPACE, torch.zeros(1), PLACES, 0.05)
    found = dynamics.rollout(torch.tensor([[1, 1, 1]])).latents.squeeze(-1)
    assert found[0].tolist() == pytest.approx([1.1, 2.2, 3.3])


def test_shared_beginnings_are_imagined_once():
    model = Drifting()
    dynamics = RecallingDynamics(model, SPACE, torch.zeros(1), PLACES, 0.3)
    dynamics.rollout(torch.tensor([[1, 1], [1, 0], [1, 1]]))
    assert model.seen == 1 + 2


def test_what_was_shown_is_not_imagined_again():
    """A wall that the model does not know: it is run into once."""
    at_wall = torch.tensor([[1.0], [1.0]])
    shown = Shown(at_wall, torch.tensor([1, 1]), torch.tensor([[2.0], [1.0]]))
    dynamics = RecallingDynamics(Drifting(), SPACE, torch.zeros(1), PLACES, 0.3, shown)
    found = dynamics.rollout(torch.tensor([[1, 1, 1], [1, 0, 1]])).latents.squeeze(-1)
    assert found.tolist() == [[1, 1, 1], [1, 0, 1]]


def test_an_unknown_action_is_one_line():
    with pytest.raises(ConfigError, match="no action 'jump'; it has back, on"):
        RecallingDynamics(Drifting(), Discrete(("jump",)), torch.zeros(1), PLACES, 0.3)

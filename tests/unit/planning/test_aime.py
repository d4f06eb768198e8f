from __future__ import annotations

import pytest
import torch
from tinyaime import NAMES, sequences, tiny

from iwm.errors import ConfigError
from iwm.planning.aime import ImaginedDynamics
from iwm.planning.config import SolverConfig
from iwm.planning.costs import GoalLatent
from iwm.planning.dynamics import Discrete
from iwm.planning.planner import Planner


def test_a_plan_leads_where_imagination_says() -> None:
    model = tiny().eval()
    observations, actions = sequences(batch=1)
    state = model.observe(observations, actions[:, :5])
    space = Discrete(NAMES[::-1])
    dynamics = ImaginedDynamics(model, space, state)
    wanted = torch.tensor([[2, 0, 1]])
    goal = dynamics.rollout(wanted).latents[0, -1]
    vectors = model.action_vectors(torch.tensor([[0, 2, 1]]))  # the same, in the model's order
    assert torch.equal(model.imagine(state, vectors, "mean").z[0, -1], goal)
    config = SolverConfig(solver="exhaustive", horizon=3, candidates=30, iterations=1)
    plan = Planner(space, config, 0).plan(dynamics, GoalLatent(goal, reduction="last"))
    reached = dynamics.rollout(plan.best.actions[None]).latents[0, -1]
    torch.testing.assert_close(reached, goal)


def test_what_the_model_does_not_know_is_refused() -> None:
    model = tiny().eval()
    observations, actions = sequences()
    state = model.observe(observations, actions[:, :5])
    with pytest.raises(ConfigError, match="2 states given, expected 1"):
        ImaginedDynamics(model, Discrete(NAMES), state)
    one = model.observe(observations[:1], actions[:1, :5])
    with pytest.raises(ConfigError, match="no action 'jump'"):
        ImaginedDynamics(model, Discrete(("jump",)), one)

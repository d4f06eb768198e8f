from types import SimpleNamespace

import pytest
import torch
from planworlds import MOVES, Grid
from tinymodel import WIDTH, tiny_action_model

from iwm.errors import ConfigError
from iwm.models.action import History
from iwm.planning.config import SolverConfig
from iwm.planning.costs import (
    GoalLatent,
    StepsToGoal,
    Uncertainty,
    UserCost,
    Weighted,
    over_horizon,
)
from iwm.planning.dynamics import Discrete, ModelDynamics, Trajectories
from iwm.planning.planner import Controller, Planner

SETTINGS = SolverConfig(solver="icem", candidates=100, horizon=6, iterations=6, elites=15)


def test_a_plan_names_its_actions_and_its_runners_up():
    plan = Planner(MOVES, SETTINGS).plan(Grid(), GoalLatent(torch.tensor([0.0, 4.0])))
    assert plan.best.names[:4] == ("north",) * 4
    assert len(plan.runners_up) == SETTINGS.runners_up
    costs = [plan.best.cost, *(other.cost for other in plan.runners_up)]
    assert costs == sorted(costs)
    assert len({(plan.best.names), *(other.names for other in plan.runners_up)}) == len(costs)
    assert 0 <= plan.dynamics_s <= plan.wall_s
    assert len(plan.curve) == 6


def test_remembering_repeats_changes_nothing_but_the_work():
    cost = GoalLatent(torch.tensor([4.0, 4.0]))
    world = Grid()
    quick = Planner(MOVES, SETTINGS, seed=5).plan(world, cost)
    plain = Planner(MOVES, SETTINGS, seed=5, remember=False).plan(Grid(), cost)
    assert quick.curve == plain.curve
    assert torch.equal(quick.best.actions, plain.best.actions)
    assert quick.rollouts == world.rolled_out < plain.rollouts == plain.candidates


def test_control_reaches_a_goal_that_lies_beyond_the_horizon():
    c = SolverConfig(solver="icem", candidates=64, horizon=3, iterations=3, elites=10)
    controller, world = Controller(Planner(MOVES, c), act=2), Grid()
    for _ in range(4):
        actions, _ = controller.step(world, GoalLatent(torch.tensor([4.0, 4.0])))
        assert len(actions) == 2
        world = Grid(tuple(world.rollout(actions.unsqueeze(0)).latents[0, -1].int().tolist()))
    assert world.start.tolist() == [4, 4]


LATENTS = torch.tensor([[[3.0, 4.0], [0.0, 0.0]], [[6.0, 8.0], [3.0, 4.0]]])


@pytest.mark.parametrize(
    ("reduction", "expected"), [("sum", [2.5, 7.5]), ("last", [0.0, 5.0]), ("min", [0.0, 5.0])]
)
def test_goal_distance_over_the_horizon(reduction, expected):
    cost = GoalLatent(torch.zeros(2), reduction)
    found = cost(Trajectories(LATENTS)) * 2**0.5
    assert found.tolist() == pytest.approx(expected)


def test_discounted_sum_weighs_the_near_steps():
    assert over_horizon(torch.tensor([[2.0, 8.0]]), "sum", 0.5).tolist() == [4.0]


def test_costs_add_up():
    trajectories = Trajectories(LATENTS, torch.log(torch.tensor([[1.0, 3.0], [2.0, 2.0]])))
    steps = StepsToGoal(lambda z: z.abs().sum(-1))
    first = UserCost(lambda latents: latents[:, -1, 0])
    both = Weighted([(1.0, Uncertainty()), (2.0, steps), (0.5, first)])
    assert both(trajectories).tolist() == pytest.approx([2 + 2 * 3.5, 2 + 2 * 10.5 + 1.5])


def test_costs_that_do_not_fit_are_one_line():
    with pytest.raises(ConfigError, match="the goal has 3 dimensions"):
        GoalLatent(torch.zeros(3))(Trajectories(LATENTS))
    with pytest.raises(ConfigError, match="predict no error"):
        Uncertainty()(Trajectories(LATENTS))
    with pytest.raises(ConfigError, match="cost function returned"):
        UserCost(lambda latents: latents[0])(Trajectories(LATENTS))
    with pytest.raises(ConfigError, match="at least one term"):
        Weighted([])


class Walker:
    """A world model whose latent is a position and whose actions are offsets."""

    vocabulary = ("up", "stay", "down")

    def action_vectors(self, ids, continuous=None):
        return torch.tensor([1.0, 0.0, -1.0])[ids].unsqueeze(-1)

    def rollout(self, z_cls, actions, history=None):
        z_cls = z_cls.unsqueeze(1) + actions.cumsum(1)
        return SimpleNamespace(z_cls=z_cls, log_error=actions[..., 0] * 0)


def test_a_model_plans_over_some_of_its_actions():
    space = Discrete(("down", "up"))
    plan = Planner(space, SETTINGS).plan(
        ModelDynamics(Walker(), space, torch.tensor([3.0])), GoalLatent(torch.tensor([0.0]))
    )
    assert plan.best.names[:3] == ("down",) * 3
    with pytest.raises(ConfigError, match="no action 'jump'; it has up, stay, down"):
        ModelDynamics(Walker(), Discrete(("jump",)), torch.zeros(1))


@pytest.mark.parametrize("frames", [0, 1, 2])
def test_sharing_beginnings_gives_what_each_rollout_gives_by_itself(frames):
    torch.manual_seed(0)
    model = tiny_action_model()
    history = None
    if frames:
        taken = model.action_vectors(torch.randint(5, (1, frames)))
        history = History(torch.randn(1, frames, WIDTH), taken)
    z = torch.randn(1, WIDTH)
    space = Discrete(("turn_left", "attack"))
    actions = torch.randint(2, (40, 5))
    shared = ModelDynamics(model, space, z[0], history).rollout(actions)
    ids = torch.tensor([model.vocabulary.index(name) for name in space.names])[actions]
    if history is not None:
        history = History(history.z_cls.expand(40, -1, -1), history.action.expand(40, -1, -1))
    alone = model.rollout(z.expand(40, -1), model.action_vectors(ids), history)
    torch.testing.assert_close(shared.latents, alone.z_cls, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(shared.log_error, alone.log_error, atol=1e-4, rtol=1e-4)

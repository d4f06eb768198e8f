import itertools
import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from planworlds import FORCE, MOVES, DoubleIntegrator, Grid, squared_position

from iwm.errors import ConfigError, ModelError
from iwm.planning.config import CONTINUOUS_SOLVERS, DISCRETE_SOLVERS, SolverConfig
from iwm.planning.costs import GoalLatent
from iwm.planning.dynamics import Box, Discrete, Trajectories
from iwm.planning.planner import Planner
from iwm.planning.solvers import (
    Categorical,
    Warm,
    coloured_noise,
    distinct,
    make_solver,
    shifted,
)

SMALL = {"candidates": 200, "horizon": 4, "iterations": 6, "elites": 20}


def config(solver: str, **more: object) -> SolverConfig:
    return SolverConfig(solver=solver, **{**SMALL, **more})  # type: ignore[arg-type]


@pytest.mark.parametrize("solver", DISCRETE_SOLVERS)
@pytest.mark.parametrize("goal", [(2, 2), (0, 4), (4, 4)])
def test_every_discrete_solver_finds_the_optimum_of_a_grid(solver, goal):
    cost = GoalLatent(torch.tensor(goal).float())
    plan = Planner(MOVES, config(solver), seed=1).plan(Grid(), cost)
    assert plan.best.cost == pytest.approx(Grid().optimum(cost, 4), abs=1e-6)
    reached = Grid().rollout(plan.best.actions.unsqueeze(0))
    assert float(cost(reached)) == pytest.approx(plan.best.cost)


@pytest.mark.parametrize("solver", ["cem", "icem", "mppi"])
def test_continuous_solvers_find_the_optimum_of_a_double_integrator(solver):
    settings_ = config(solver, candidates=300, horizon=6, iterations=20, elites=30)
    plan = Planner(FORCE, settings_, seed=0).plan(DoubleIntegrator(), squared_position)
    assert plan.best.cost <= 1.05 * DoubleIntegrator().optimum(6)


def test_random_shooting_comes_near_in_few_continuous_dimensions():
    settings_ = config("random_shooting", candidates=2000, horizon=2, iterations=2)
    plan = Planner(FORCE, settings_, seed=0).plan(DoubleIntegrator(), squared_position)
    assert plan.best.cost <= DoubleIntegrator().optimum(2) + 0.01


@pytest.mark.parametrize("solver", ["cem", "icem"])
@pytest.mark.parametrize("space", ["grid", "line"])
def test_cem_is_no_worse_than_random_shooting_with_an_equal_budget(solver, space):
    budget = {"candidates": 40, "horizon": 10, "iterations": 5, "elites": 8}

    def mean_cost(name: str) -> float:
        costs = []
        for seed in range(15):
            planner = Planner(MOVES if space == "grid" else FORCE, config(name, **budget), seed)
            if space == "grid":
                plan = planner.plan(Grid(), GoalLatent(torch.tensor([4.0, 4.0])))
            else:
                plan = planner.plan(DoubleIntegrator(), squared_position)
            assert plan.candidates <= 200
            costs.append(plan.best.cost)
        return statistics.mean(costs)

    assert mean_cost(solver) <= mean_cost("random_shooting")


@pytest.mark.parametrize("solver", sorted({*DISCRETE_SOLVERS, *CONTINUOUS_SOLVERS}))
def test_a_seed_reproduces_and_another_differs(solver):
    def found(seed: int) -> list[float]:
        if solver in CONTINUOUS_SOLVERS:
            plan = Planner(FORCE, config(solver), seed).plan(DoubleIntegrator(), squared_position)
        else:
            goal = GoalLatent(torch.tensor([4.0, 4.0]))
            plan = Planner(MOVES, config(solver), seed).plan(Grid(), goal)
        return [*plan.curve, *plan.best.actions.flatten().tolist()]

    assert found(3) == found(3)
    if solver != "exhaustive":
        assert found(3) != found(4)


@pytest.mark.parametrize("solver", CONTINUOUS_SOLVERS)
@given(
    low=st.floats(-5, 5), width=st.floats(0.1, 10), seed=st.integers(0, 2**31), warm=st.booleans()
)
@settings(max_examples=25, deadline=None)
def test_no_candidate_ever_leaves_the_bounds(solver, low, width, seed, warm):
    space = Box((low, -1.0), (low + width, 1.0))
    c = config(solver, candidates=20, horizon=3, iterations=4, elites=5, deviation=3.0)
    seen = []

    def evaluate(actions):
        seen.append(actions)
        return actions.sum((1, 2))

    start = None
    if warm:
        start = Warm(torch.full((3, 2), 1e6), torch.empty(0, 3, 2))
    solution = make_solver(space, c, seed).solve(evaluate, start)
    every = torch.cat([*seen, solution.actions])
    assert bool((every >= torch.tensor(space.low) - 1e-6).all())
    assert bool((every <= torch.tensor(space.high) + 1e-6).all())


@pytest.mark.parametrize("solver", ["random_shooting", "cem", "icem"])
@given(actions=st.integers(1, 7), horizon=st.integers(1, 9), seed=st.integers(0, 2**31))
@settings(max_examples=25, deadline=None)
def test_discrete_candidates_are_valid_and_the_curve_never_rises(solver, actions, horizon, seed):
    space = Discrete(tuple("abcdefg"[:actions]))
    c = config(solver, candidates=20, horizon=horizon, iterations=4, elites=5)

    def evaluate(found):
        assert found.shape == (found.shape[0], horizon)
        assert int(found.min()) >= 0
        assert int(found.max()) < actions
        return found.float().sum(1)

    solution = make_solver(space, c, seed).solve(evaluate)
    assert all(a >= b for a, b in itertools.pairwise(solution.curve))
    assert len(torch.unique(solution.actions, dim=0)) == len(solution.actions)
    assert bool((solution.costs.diff() >= 0).all())


@pytest.mark.parametrize("solver", sorted({*DISCRETE_SOLVERS, *CONTINUOUS_SOLVERS}))
def test_costs_that_are_not_finite_are_worst_and_do_not_poison(solver):
    space = FORCE if solver in CONTINUOUS_SOLVERS else MOVES
    world = DoubleIntegrator() if solver in CONTINUOUS_SOLVERS else Grid()
    bad = torch.tensor([float("nan"), float("inf"), float("-inf")])

    def cost(trajectories: Trajectories) -> torch.Tensor:
        honest = trajectories.latents.square().mean((1, 2))
        broken = trajectories.latents[:, 0, 0] > trajectories.latents[:, 0, 0].median()
        return torch.where(broken, bad[torch.arange(len(honest)) % 3], honest)

    plan = Planner(space, config(solver), remember=False).plan(world, cost)
    assert all(torch.isfinite(torch.tensor(plan.curve)))
    assert torch.isfinite(plan.warm.mean).all()


def test_no_finite_cost_at_all_is_one_line():
    with pytest.raises(ModelError, match="none of 1200 candidates has a finite cost"):
        Planner(MOVES, config("cem")).plan(Grid(), lambda t: t.latents[:, 0, 0] * float("nan"))


@pytest.mark.parametrize("solver", ["cem", "icem", "mppi"])
def test_a_warm_start_goes_on_where_the_last_search_ended(solver):
    c = config(solver, candidates=30, horizon=6, iterations=2, elites=6)
    space = FORCE if solver == "mppi" else MOVES
    world = DoubleIntegrator() if solver == "mppi" else Grid()
    cost = squared_position if solver == "mppi" else GoalLatent(torch.tensor([4.0, 4.0]))
    cold, warm = [], []
    for seed in range(10):
        planner = Planner(space, c, seed)
        first = planner.plan(world, cost)
        cold.append(first.best.cost)
        warm.append(planner.plan(world, cost, first.warm).best.cost)
    assert statistics.mean(warm) <= statistics.mean(cold)


def test_shifting_a_warm_start():
    mean = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.25, 0.75]])
    later = shifted(Warm(mean, torch.tensor([[0, 1, 1]])), 2)
    assert later.mean.tolist() == [[0.25, 0.75], [0.5, 0.5], [0.5, 0.5]]
    assert later.elites.tolist() == [[1, 1, 1]]
    continuous = shifted(Warm(torch.tensor([[1.0], [2.0]]), torch.empty(0, 2, 1)), 5)
    assert continuous.mean.tolist() == [[2.0], [2.0]]


def test_held_draws_keep_every_step_s_distribution():
    c = config("icem", correlation=0.8, floor=0.0, horizon=3)
    proposal = Categorical(Discrete(("a", "b", "c")), c)
    wanted = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8], [1 / 3, 1 / 3, 1 / 3]])
    proposal.reset(wanted)
    drawn = proposal.sample(40_000, torch.Generator().manual_seed(0))
    found = torch.nn.functional.one_hot(drawn, 3).float().mean(0)
    assert torch.allclose(found, wanted, atol=0.01)


def test_icem_holds_actions_and_cem_does_not():
    def repeats(solver: str) -> float:
        proposal = Categorical(MOVES, config(solver, horizon=8))
        drawn = proposal.sample(5000, torch.Generator().manual_seed(0))
        return float((drawn.diff(dim=1) == 0).float().mean())

    assert repeats("cem") == pytest.approx(0.25, abs=0.01)
    assert repeats("icem") == pytest.approx(0.5 + 0.5 * 0.25, abs=0.01)


@pytest.mark.parametrize("length", [3, 7, 8, 33])
def test_coloured_noise_has_unit_variance_and_the_colour(length):
    generator = torch.Generator().manual_seed(0)
    noise = coloured_noise((20_000, length, 1), 2.0, generator)
    assert float(noise.var()) == pytest.approx(1.0, abs=0.05)
    white = coloured_noise((20_000, length, 1), 0.0, generator)
    assert float(noise.diff(dim=1).var()) < float(white.diff(dim=1).var())


def test_distinct_keeps_the_order_of_the_first_seen():
    actions = torch.tensor([[2, 2], [1, 1], [2, 2], [0, 0]])
    kept, costs = distinct(actions, torch.tensor([0.0, 1.0, 1.0, 3.0]), 3)
    assert kept.tolist() == [[2, 2], [1, 1], [0, 0]]
    assert costs.tolist() == [0.0, 1.0, 3.0]


@pytest.mark.parametrize(
    ("space", "values", "message"),
    [
        (MOVES, {"solver": "mppi"}, "not for discrete actions"),
        (FORCE, {"solver": "exhaustive"}, "not for continuous actions"),
        (MOVES, {"solver": "exhaustive", "horizon": 20}, "more than candidates x iterations"),
    ],
)
def test_a_solver_that_does_not_fit_is_one_line(space, values, message):
    with pytest.raises(ConfigError, match=message):
        make_solver(space, config(**values))


def test_wrong_shapes_are_one_line():
    solver = make_solver(MOVES, config("cem"))
    with pytest.raises(ConfigError, match=r"expected \(200,\)"):
        solver.solve(lambda actions: torch.zeros(3))
    with pytest.raises(ConfigError, match="warm start"):
        solver.solve(lambda a: torch.zeros(len(a)), Warm(torch.ones(2, 2), torch.empty(0, 2)))
    with pytest.raises(ConfigError, match="elites 400 exceeds"):
        config("cem", elites=400)
    with pytest.raises(ConfigError, match="low below high"):
        Box((1.0,), (1.0,))
    with pytest.raises(ConfigError, match="distinct"):
        Discrete(("a", "a"))

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from iwm.errors import ConfigError, DataError
from iwm.evaluation.arms import BranchedDynamics, Eye, TableDynamics, fit_cloning
from iwm.evaluation.control import Recorded, control
from iwm.evaluation.control_config import CloningConfig, ControlConfig
from iwm.evaluation.goals import explore, explored_tasks, played_tasks, reached, where
from iwm.gameplay.config import RecordPlan
from iwm.gameplay.policies import RandomHold
from iwm.gameplay.sources import Outcome
from iwm.planning.config import SolverConfig

SIDE, WALL = 6, {(2, y) for y in range(5)}
STEPS = {"wait": (0, 0), "up": (0, 1), "down": (0, -1), "east": (1, 0), "west": (-1, 0)}
PLAN = RecordPlan(name="maze", source="gymnasium", game="maze", frames=10, hold_max=3)


def picture(place):
    """Two grey halves that tell x and y."""
    frame = np.zeros((4, 4, 3), np.uint8)
    frame[:2], frame[2:] = 40 * place[0], 40 * place[1]
    return frame


class Maze:
    """A game with a wall that has one gap, at the top; the way around it is long."""

    actions = tuple(STEPS)
    branches = 0

    def reset(self, seed):
        free = [(x, y) for x in range(SIDE) for y in range(SIDE) if (x, y) not in WALL]
        self.place = free[np.random.default_rng(seed).integers(len(free))]
        return picture(self.place)

    def step(self, action):
        dx, dy = STEPS[self.actions[action]]
        there = (self.place[0] + dx, self.place[1] + dy)
        if there not in WALL and min(there) >= 0 and max(there) < SIDE:
            self.place = there
        return Outcome(picture(self.place), 0.0, False)

    def save(self):
        return self.place

    def restore(self, handle):
        self.branches += 1
        self.place = handle

    def frame(self):
        return picture(self.place)

    def position(self):
        return float(self.place[0]), float(self.place[1]), 0.0


class KnowsTheMaze:
    """A model without error: its latents are positions."""

    vocabulary = tuple(STEPS)
    history = 2
    config = SimpleNamespace(image_size=(4, 4), fit="resize")

    def parameters(self):
        yield torch.zeros(1)

    def encode(self, images):
        return torch.stack([images[:, 0, 0, 0], images[:, 0, 3, 0]], 1).float() / 40, None

    def action_vectors(self, ids, continuous=None):
        return torch.nn.functional.one_hot(ids, len(STEPS)).float()

    def rollout(self, z_cls, actions, history=None):
        rows = []
        for start, sequence in zip(z_cls.tolist(), actions.argmax(-1).tolist(), strict=True):
            maze = Maze()
            maze.place = (round(start[0]), round(start[1]))
            rows.append([])
            for action in sequence:
                maze.step(action)
                rows[-1].append([float(value) for value in maze.place])
        latents = torch.tensor(rows)
        return SimpleNamespace(z_cls=latents, log_error=torch.zeros(latents.shape[:2]))


def settings(**more):
    values = {
        "plan": "maze",
        "goals": "explored",
        "seeds": 2,
        "tasks": 6,
        "budget": 1.5,
        "bootstrap": 100,
        "solver": SolverConfig(candidates=40, horizon=4, iterations=3, elites=6),
        "cloning": CloningConfig(steps=60),
    }
    return ControlConfig(**{**values, **more})


def play(frames=1500):
    maze, policy, rng = Maze(), RandomHold(len(STEPS), 1, 3), np.random.default_rng(0)
    places, actions, episode = [], [], []
    for number in range(frames // 50):
        frame = maze.reset(int(rng.integers(1000)))
        policy.reset(number)
        for _ in range(50):
            places.append([float(value) for value in maze.place])
            actions.append(policy.choose(frame))
            episode.append(number)
            maze.step(actions[-1])
    return Recorded(torch.tensor(places), np.array(actions), np.array(episode))


def test_exploring_finds_every_state_and_the_shortest_paths():
    table = explore(Maze(), 0, tuple(range(5)))
    assert len(table.places) == SIDE * SIDE - len(WALL)
    left, right = table.index[1.0, 0.0, 0.0], table.index[3.0, 0.0, 0.0]
    assert table.steps[left, right] == 12  # up, over, down
    assert table.frames[left].tolist() == picture((1, 0)).tolist()
    moved = TableDynamics(table, torch.tensor(table.places), left).rollout(torch.tensor([[1, 4]]))
    assert moved.latents.tolist() == [[[1, 1, 0], [0, 1, 0]]]


def test_explored_tasks_start_where_the_game_starts_and_are_not_solved():
    maze, config = Maze(), settings()
    table = explore(maze, 0, tuple(range(5)))
    tasks = explored_tasks(maze, table, config, 0)
    again = explored_tasks(maze, table, config, 0)
    assert [(task.seed, task.target) for task in tasks] == [(t.seed, t.target) for t in again]
    for task in tasks:
        maze.reset(task.seed)
        assert not reached(where(maze), task.target, config)
        start, goal = table.index[where(maze)], table.index[task.target]
        assert task.shortest == table.steps[start, goal]
        assert task.shortest <= task.budget <= 1.5 * task.shortest + 1


def test_played_tasks_lead_from_start_to_goal():
    maze, config = Maze(), settings(goals="played", goal_steps=(4, 8), prefix_steps=(0, 5))
    for task in played_tasks(maze, RandomHold(5, 1, 3), config, 1):
        maze.reset(task.seed)
        for action in task.prefix:
            maze.step(action)
        assert not reached(where(maze), task.target, config)
        assert 4 <= task.shortest <= 8


def test_a_policy_that_stays_gives_no_tasks():
    with pytest.raises(DataError, match="only 0 of 2 tasks"):
        played_tasks(Maze(), RandomHold(1, 1, 1), settings(goals="played", tasks=2), 0)


def test_heading_counts_on_the_circle():
    config = settings(distance=1.0, angle=30)
    assert reached((0, 0, 350), (0.5, 0.5, 10), config)
    assert not reached((0, 0, 350), (0, 0, 30), config)
    assert not reached((0, 0, 0), (1, 1, 0), config)


def test_branched_dynamics_are_the_game_and_leave_it_as_it_was():
    maze = Maze()
    maze.place = (0, 0)
    dynamics = BranchedDynamics(maze, (1, 3), Eye(KnowsTheMaze()))
    found = dynamics.rollout(torch.tensor([[0, 1], [1, 0], [0, 1]]))
    assert found.latents.tolist() == [[[0, 1], [1, 1]], [[1, 0], [1, 1]], [[0, 1], [1, 1]]]
    assert maze.place == (0, 0)
    branches = maze.branches
    dynamics.rollout(torch.tensor([[0, 1]]))
    assert maze.branches == branches + 1  # remembered: only brought back


@pytest.mark.parametrize("goals", ["explored", "played"])
def test_a_model_without_error_reaches_the_goals_as_the_oracle_does(goals):
    oracle = SolverConfig(candidates=40, horizon=4, iterations=3, elites=6)
    config = settings(goals=goals, oracle_solver=oracle, oracle_tasks=4, goal_steps=(4, 8))
    found = control(KnowsTheMaze(), Maze(), PLAN, play(), config)
    figures = found.figures
    assert figures["model"]["success"]["n"] == 12
    assert figures["oracle"]["success"]["n"] == 8
    assert figures["model"]["success"]["mean"] >= 0.9
    assert figures["oracle"]["success"]["mean"] >= 0.85
    assert figures["random"]["success"]["mean"] < figures["model"]["success"]["mean"]
    assert 0 <= figures["cloning"]["success"]["mean"] <= 1
    assert figures["temporal_distance"]["coverage"] == 1.0
    if goals == "explored":
        assert 1 <= figures["model"]["path_ratio"]["mean"] <= 1.5
        assert figures["temporal_distance"]["rank_correlation"]["mean"] > 0.97


def test_cloning_learns_what_leads_to_a_goal():
    recorded = play(3000)
    config = CloningConfig(steps=400, horizon=1)
    network = fit_cloning(recorded.latents, recorded.actions, recorded.episode, 5, config)
    ahead = torch.tensor([[4.0, 2.0, 5.0, 2.0], [4.0, 2.0, 4.0, 3.0]])
    assert network(ahead).argmax(1).tolist() == [3, 1]


def test_an_action_that_nobody_knows_is_one_line():
    with pytest.raises(ConfigError, match="maze has no action 'jump'"):
        control(KnowsTheMaze(), Maze(), PLAN, play(100), settings(actions=("jump",)))
    with pytest.raises(ConfigError, match="goal_steps: 9 exceeds 3"):
        settings(goal_steps=(9, 3))

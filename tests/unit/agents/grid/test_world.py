"""The game's rules, and what an agent can see."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from iwm.agents.grid.config import GridConfig
from iwm.agents.grid.world import MOVES, Games, assignment, pair_numbers, pairings
from iwm.errors import ConfigError

CONFIGS = st.builds(
    GridConfig,
    size=st.integers(6, 12),
    agents=st.sampled_from([2, 4, 6]),
    tasks=st.integers(1, 12),
    view=st.integers(0, 4),
)


@settings(max_examples=25, deadline=None)
@given(config=CONFIGS, seed=st.integers(0, 10**6))
def test_rules(config: GridConfig, seed: int) -> None:
    games = Games(config, 8, seed)
    draw = torch.Generator().manual_seed(seed)
    for _ in range(12):
        before, active = games.position, games.active
        games.step(torch.randint(len(MOVES), (8, config.agents), generator=draw))
        assert (games.position >= 0).all()
        assert (games.position < config.size).all()
        assert ((games.position - before).abs().sum(-1) <= 1).all()
        assert (games.position[~active] == before[~active]).all()
        # At work: on a task, with another there.
        for game in range(8):
            cells = [tuple(cell) for cell in games.position[game].tolist()]
            board = {tuple(cell) for cell in games.tasks[game].tolist()}
            wanted = [cell in board and cells.count(cell) > 1 for cell in cells]
            assert games.at_work()[game].tolist() == wanted
            assert not all(wanted) or not games.active[game]
    assert (games.finished_at[~games.active] >= 1).all()


@settings(max_examples=25, deadline=None)
@given(config=CONFIGS, seed=st.integers(0, 10**6))
def test_the_view_hides_what_is_far(config: GridConfig, seed: int) -> None:
    games = Games(config, 8, seed)
    draw = torch.Generator().manual_seed(seed)
    for _ in range(4):
        sight = games.look()
        apart = (games.position[:, :, None] - games.position[:, None]).abs().amax(-1)
        itself = torch.eye(config.agents, dtype=torch.bool)
        hidden = (apart > config.view) | itself
        assert (sight.others[hidden] == -1).all()
        assert (sight.visible == ~hidden).all()
        there = games.position[:, None].expand_as(sight.others)
        assert (sight.others[~hidden] == there[~hidden]).all()
        games.step(torch.randint(len(MOVES), (8, config.agents), generator=draw))


def test_boards_differ_and_are_repeatable() -> None:
    config = GridConfig()
    one, same, other = Games(config, 64, 3), Games(config, 64, 3), Games(config, 64, 4)
    assert (one.tasks == same.tasks).all()
    assert (one.tasks != other.tasks).any()
    cells = torch.cat((one.position, one.tasks), 1)
    together = (cells[:, :, None] == cells[:, None]).all(-1).sum((1, 2))
    assert (together == cells.shape[1]).all(), "agents and tasks start in cells of their own"


def test_pairings() -> None:
    assert [len(pairings(agents)) for agents in (2, 4, 6, 10)] == [1, 3, 15, 945]
    assert (pairings(6).flatten(1).sort(1).values == torch.arange(6)).all()
    number, members, of_pairing = pair_numbers(6)
    assert (members[:, number[4, 1]] == torch.tensor([1, 4])).all()
    found = members[:, of_pairing].permute(1, 2, 0)
    assert (found == pairings(6).sort(-1).values).all()


@settings(max_examples=20, deadline=None)
@given(agents=st.sampled_from([2, 4]), tasks=st.integers(1, 5), seed=st.integers(0, 10**6))
def test_the_planner_is_exact(agents: int, tasks: int, seed: int) -> None:
    games = Games(GridConfig(size=6, agents=agents, tasks=tasks), 4, seed)
    planned = assignment(games.position, games.tasks)
    chosen, moves = planned.task, planned.moves
    walk = (games.position[:, :, None] - games.tasks[:, None]).abs().sum(-1)
    for game in range(4):
        ways = [
            max(
                int(walk[game, one, task])
                for pair, task in zip(pairs, board, strict=True)
                for one in pair
            )
            for pairs in pairings(agents).tolist()
            for board in itertools.product(range(tasks), repeat=agents // 2)
        ]
        assert min(ways) == moves[game]
        own = [int(walk[game, one, chosen[game, one]]) for one in range(agents)]
        assert max(own) == moves[game]
        times = chosen[game].bincount()
        assert (times[times > 0] % 2 == 0).all(), "nobody is sent alone"
    everybody = torch.arange(agents).expand(4, -1)
    assert (planned.partner != everybody).all()
    assert (planned.partner.gather(1, planned.partner) == everybody).all()
    assert (chosen.gather(1, planned.partner) == chosen).all()


def test_of_equal_plans_the_planner_takes_the_one_that_is_followed() -> None:
    position = torch.tensor([[[2, 0], [2, 4]]])
    tasks = torch.tensor([[[0, 2], [2, 2], [4, 2], [1, 2]]])
    for target, wanted in (([-1, -1], 1), ([1, 1], 1), ([3, 1], 1), ([0, 2], 1)):
        assert assignment(position, tasks, torch.tensor([target])).task.tolist() == [[wanted] * 2]
    level = torch.tensor([[[0, 2], [4, 2]]])
    for target, wanted in (([0, 1], 0), ([1, 0], 1), ([-1, 1], 1), ([1, 1], 1)):
        assert assignment(position, level, torch.tensor([target])).task.tolist() == [[wanted] * 2]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"size": 5, "agents": 4, "tasks": 12}, "crowd 5x5"),
        ({"agents": 3}, "even number"),
        ({"agents": 12}, "up to 10"),
    ],
)
def test_impossible_games_are_refused(wrong: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        GridConfig(**wrong)

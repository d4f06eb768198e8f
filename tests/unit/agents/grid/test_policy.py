"""Joint plans: their probabilities are exact, and who knows the same decides the same."""

from __future__ import annotations

import itertools

import pytest
import torch

from iwm.agents.grid.config import GridConfig
from iwm.agents.grid.imagination import Imagination, learn_transitions
from iwm.agents.grid.learning import Team
from iwm.agents.grid.messages import Channel, Heard, IntentionBook, Plans
from iwm.agents.grid.policy import Choice, Policy, look_ahead
from iwm.agents.grid.world import Games, assignment, cell_of, pair_numbers, pairings

AGENTS, TASKS = 4, 3


LAST = torch.tensor([0.5, -1.0, 1.5])
"""What the three pairings are worth beside their pairs."""


def choice(scores: torch.Tensor) -> Choice:
    nothing = torch.zeros(0)
    return Choice(scores, LAST.expand(len(scores), 1, 3), nothing, nothing)


@pytest.fixture(scope="module")
def scores() -> torch.Tensor:
    draw = torch.Generator().manual_seed(0)
    return 2 * torch.randn(5, AGENTS, AGENTS * (AGENTS - 1) // 2, TASKS, generator=draw)


def joint_plans(scores: torch.Tensor) -> dict[tuple[tuple[int, int], ...], float]:
    """Every way to form pairs and to give them tasks -> its score, one agent's in one game."""
    _, _, of_pairing = pair_numbers(AGENTS)
    return {
        tuple(zip(pairs, tasks, strict=True)): float(
            last + sum(scores[pair, task] for pair, task in zip(pairs, tasks, strict=True))
        )
        for pairs, last in zip(of_pairing.tolist(), LAST, strict=True)
        for tasks in itertools.product(range(TASKS), repeat=AGENTS // 2)
    }


def test_probabilities_are_those_of_all_joint_plans(scores: torch.Tensor) -> None:
    number, _, _ = pair_numbers(AGENTS)
    for game, agent in itertools.product(range(len(scores)), range(AGENTS)):
        plans = joint_plans(scores[game, agent])
        whole = torch.tensor(list(plans.values())).logsumexp(0)
        for partner in set(range(AGENTS)) - {agent}:
            for task in range(TASKS):
                mine = (int(number[agent, partner]), task)
                those = torch.tensor([worth for plan, worth in plans.items() if mine in plan])
                pair = torch.full((len(scores), AGENTS), mine[0])
                found = choice(scores).log_likelihood(pair, torch.full_like(pair, task))
                expected = those.logsumexp(0) - whole
                assert float(found[game, agent]) == pytest.approx(float(expected), abs=1e-4)


def test_the_best_joint_plan_is_followed(scores: torch.Tensor) -> None:
    number, members, _ = pair_numbers(AGENTS)
    task, sure = choice(scores).best()
    assert ((sure > 0) & (sure <= 1)).all()
    for game, agent in itertools.product(range(len(scores)), range(AGENTS)):
        plans = joint_plans(scores[game, agent])
        best = max(plans, key=lambda plan: plans[plan])
        (mine,) = (what for pair, what in best if agent in members[:, pair].tolist())
        assert int(task[game, agent]) == mine
    assert len(pairings(AGENTS)) == 3
    assert int(number.max()) == 5


def test_a_voice_says_something_from_the_start() -> None:
    """Before it is found all agents say the same; then half of them each, by what they see."""
    torch.manual_seed(0)
    imagination = Imagination(learn_transitions(6, updates=100, seed=0)[0])
    policy = Policy(16)
    sight = Games(GridConfig(size=6, tasks=6), 400, 0).look()

    def bits() -> torch.Tensor:
        agents = Team(policy, Channel("bit", IntentionBook(imagination)))
        return agents.act(sight)[1].bit.detach()

    mute = bits()
    assert mute.std() < 0.3
    policy.find_voice(mute)
    said = bits()
    assert float(said.mean()) == pytest.approx(0, abs=1e-3)
    assert float(said.std()) == pytest.approx(1, abs=1e-3)
    assert 0.3 < float((said > 0).float().mean()) < 0.7


def test_what_is_imagined_does_not_depend_on_numbers() -> None:
    """Agents that are numbered otherwise imagine the same of the same pairs."""
    config = GridConfig(size=6, agents=4, tasks=5)
    imagination = Imagination(learn_transitions(6, updates=100, seed=0)[0])
    games = Games(config, 8, 0)
    sight = games.look()
    cell = cell_of(games.position, 6)
    end = cell_of(games.tasks, 6)[:, :4]
    sure = torch.rand(8, 4, generator=torch.Generator().manual_seed(1))
    turn = torch.tensor([2, 0, 3, 1])
    one = look_ahead(sight, Heard(Plans(cell, end, sure), None), imagination)
    other = look_ahead(
        sight, Heard(Plans(cell[:, turn], end[:, turn], sure[:, turn]), None), imagination
    )
    number, (left, right), of_pairing = pair_numbers(4)
    assert torch.equal(other.features, one.features[:, :, number[turn[left], turn[right]]])
    assert one.known.all()
    assert one.certain.all()
    assert (one.delay.amin(-1) == 0).all()
    assert torch.equal(other.delay.sort(-1).values, one.delay.sort(-1).values)
    ends = assignment(games.position, games.tasks).moves
    pairs = torch.maximum(*(imagination.steps[cell[:, who]] for who in (left, right)))
    soonest = pairs.gather(2, cell_of(games.tasks, 6)[:, None].expand(-1, 6, -1)).amin(-1)
    latest = soonest[:, of_pairing].amax(-1)
    assert torch.equal(one.delay[:, 0], latest - ends[:, None])
    alone = look_ahead(sight, Heard(None, None), imagination)
    known = (sight.visible | torch.eye(4, dtype=torch.bool))[:, :, None, :]
    assert torch.equal(alone.known, known[..., 0, left] & known[..., 0, right])

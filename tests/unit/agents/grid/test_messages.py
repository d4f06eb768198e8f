"""Messages: what goes through them, and that nothing goes around them."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from iwm.agents.grid.config import GridConfig
from iwm.agents.grid.imagination import Imagination, learn_transitions
from iwm.agents.grid.learning import Team
from iwm.agents.grid.messages import ARMS, Arm, Channel, Heard, IntentionBook, goal_of
from iwm.agents.grid.policy import Policy
from iwm.agents.grid.world import Games, cell_of

SIZE = 6


@pytest.fixture(scope="module")
def book() -> IntentionBook:
    return IntentionBook(Imagination(learn_transitions(SIZE, updates=100, seed=0)[0]))


def team(arm: Arm, book: IntentionBook, seed: int = 0) -> Team:
    torch.manual_seed(seed)
    return Team(Policy(16), Channel(arm, book))


def test_every_intention_is_json_of_at_most_49_bytes(book: IntentionBook) -> None:
    cells = torch.arange(SIZE**2)
    start, goal = torch.cartesian_prod(cells, cells).unbind(-1)
    texts = book.write(start, goal, torch.full((len(start),), 0.5))
    assert all(len(text.encode()) <= 49 for text in texts)
    assert all(
        json.loads(text)["g"] == [g % SIZE, g // SIZE]
        for text, g in zip(texts, goal.tolist(), strict=True)
    )
    told = book.read(texts)
    assert (told[:, 0] == start).all(), "the plan tells where its way begins"
    assert (told[:, 1] == goal).all()
    assert (told[:, 2] == 0.5).all()


def test_a_plan_tells_where_its_agent_will_be(book: IntentionBook) -> None:
    """Who hears of a way knows the place after the next step, too."""
    games = Games(GridConfig(size=SIZE, agents=4, tasks=6), 16, 0)
    agents = team("intention", book)
    agents.act(games.look())
    for _ in range(3):
        sight = games.look()
        action, _ = agents.act(sight)
        plans = agents._heard.plans
        assert plans is not None
        assert (plans.start == cell_of(sight.position, SIZE)).all()
        assert agents.target is not None
        assert (plans.end == cell_of(goal_of(sight, agents.target), SIZE)).all()
        games.step(action)
        there = cell_of(games.position, SIZE)
        later = plans.a_step_later(book.imagination)
        assert (later.start[games.active] == there[games.active]).all()


@pytest.mark.parametrize("arm", ARMS)
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_messages_are_the_only_channel(arm: Arm, book: IntentionBook, seed: int) -> None:
    """Where an agent stands that nobody sees changes nothing that others do, unless it tells."""
    config = GridConfig(size=SIZE, view=1, tasks=6)
    games, other = Games(config, 32, seed), Games(config, 32, seed)
    one, same = team(arm, book, seed), team(arm, book, seed)
    first = games.look()
    one.act(first)
    same.act(first)
    draw = torch.Generator().manual_seed(seed)
    other.position[:, 1] = torch.randint(SIZE, (32, 2), generator=draw)
    before, after = games.look(), other.look()
    unseen = ~(before.visible | after.visible)[:, 0, 1]
    assert unseen.any()
    action, choice = one.act(before)
    changed, changed_choice = same.act(after)
    assert (action[unseen, 0] == changed[unseen, 0]).all()
    assert torch.equal(choice.scores[unseen, 0], changed_choice.scores[unseen, 0])


@pytest.mark.parametrize("arm", ["bit", "intention", "full"])
def test_what_is_told_is_heard(arm: Arm, book: IntentionBook) -> None:
    """The same sight and other messages: another choice."""
    games = Games(GridConfig(size=SIZE, view=0, tasks=6), 16, 0)
    sight = games.look()
    one, two = team(arm, book), team(arm, book)
    one.act(sight)
    two.act(sight)
    plans, bits = two._heard.plans, two._heard.bits
    if plans is not None:
        plans = dataclasses.replace(plans, start=plans.start.flip(0), end=plans.end.flip(0))
    two._heard = Heard(plans, None if bits is None else -bits)
    assert not torch.equal(one.act(sight)[1].scores, two.act(sight)[1].scores)


def test_silence_is_silent(book: IntentionBook) -> None:
    agents = team("silent", book)
    agents.act(Games(GridConfig(size=SIZE, tasks=6), 4, 0).look())
    assert agents._heard == Heard(None, None)


def test_bits_are_bits_and_let_gradients_through(book: IntentionBook) -> None:
    logit = torch.randn(8, 2, requires_grad=True)
    said = Channel("bit", book).bits(logit)
    assert said is not None
    assert set(said.detach().round(decimals=5).unique().tolist()) <= {-1.0, 1.0}
    said.sum().backward()
    assert logit.grad is not None
    assert (logit.grad > 0).all()
    assert Channel("intention", book).bits(logit) is None

"""Going back in a game: what follows a restored state is what would have followed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest

from iwm.data.branches import visible_share
from iwm.errors import DataError
from iwm.gameplay.branch import branch_states
from iwm.gameplay.config import BranchConfig, BranchPlan, RecordPlan
from iwm.gameplay.fresh import fresh_seeds
from iwm.gameplay.play import derive_seed
from iwm.gameplay.policies import automatic_policy
from iwm.gameplay.sources import Branching, Outcome, open_branching, open_source


def plan(source: str, game: str, skip: int = 1, size: tuple[int, int] = (64, 64)) -> RecordPlan:
    return RecordPlan(
        name="b",
        source=source,  # type: ignore
        game=game,
        frames=9,
        frame_skip=skip,
        width=size[0],
        height=size[1],
        max_episode_steps=200,
    )


SPRITES = plan("procedural", "sprites")
DOOM = plan("vizdoom", "my_way_home", 8, (160, 120))
GAMES = {
    "sprites": SPRITES,
    "doom": DOOM,
    "corridor": replace(DOOM, game="deadly_corridor"),
    "medikits": replace(DOOM, game="health_gathering"),
    "freeway": plan("gymnasium", "ALE/Freeway-v5", 4, (160, 210)),
    "breakout": plan("gymnasium", "ALE/Breakout-v5", 4, (160, 210)),
    "rooms": plan("gymnasium", "MiniGrid-FourRooms-v0"),
}


@pytest.fixture(params=GAMES)
def game(request: pytest.FixtureRequest) -> Iterator[tuple[RecordPlan, Branching]]:
    chosen = GAMES[request.param]
    with closing(open_branching(chosen)) as source:
        yield chosen, source


def test_a_restored_game_plays_on_exactly(game: tuple[RecordPlan, Branching]) -> None:
    chosen, source = game
    random = np.random.default_rng(3)
    actions = random.integers(0, len(source.actions), 24).tolist()
    with closing(open_source(chosen)) as recorder:
        straight = [Outcome(recorder.reset(5), 0.0, False)]
        for action in actions:
            straight.append(recorder.step(action))
            if straight[-1].done:
                break
    # Doom's puffs, flashes and blood depend a little on what was played before the episode.
    shooting, compared, different = "attack" in source.actions, 0, 0

    def compare(found: Outcome, truth: Outcome) -> None:
        nonlocal compared, different
        assert (found.reward, found.done) == (truth.reward, truth.done)
        same = np.array_equal(found.frame, truth.frame)  # type: ignore
        assert same or (shooting and visible_share(found.frame, truth.frame) < 0.1)  # type: ignore
        compared, different = compared + 1, different + (not same)

    length = len(straight) - 1
    source.reset(5)
    for step in range(length):
        if step % 4 == 3 and step < length - 4:
            handle, place = source.save(), source.position()
            for wrong in range(len(source.actions)):
                source.step(wrong)
                source.step(0)
                source.restore(handle)
            # Several steps on, so that speeds and random numbers count; from other episodes too.
            source.reset(6)
            source.restore(handle)
            compare(Outcome(source.frame(), straight[step].reward, False), straight[step])
            assert source.position() == place
            for ahead in range(3):
                compare(source.step(actions[step + ahead]), straight[step + ahead + 1])
            for change in (lambda: source.remove_object(0), lambda: source.teleport(random)):
                source.restore(handle)
                change()
                source.step(0)
            source.restore(handle)
        compare(source.step(actions[step]), straight[step + 1])
    assert different <= 0.2 * compared


def test_doom_removes_objects_and_warps() -> None:
    with closing(open_branching(GAMES["medikits"])) as source:
        source.reset(7)
        for _ in range(3):  # what was put into the air falls
            source.step(0)
        here = source.save()
        for action in (3, 3, 3, 3, 3, 3, 3, 3, 1, 3, 3, 3, 3, 3):
            source.step(action)
        there = source.save()
        truth = source.step(0).frame
        source.restore(there)
        before = source.position()
        assert before is not None
        assert source.teleport(np.random.default_rng(0))
        moved = source.step(0).frame
        after = source.position()
        assert after is not None
        assert np.hypot(after[0] - before[0], after[1] - before[1]) > 200
        assert not np.array_equal(moved, truth)  # type: ignore
        with pytest.raises(DataError, match="cannot be saved"):
            source.save()
        source.restore(here)
        truth = source.step(0).frame
        source.restore(here)
        seen = source.frame()
        mask = source.remove_object(0)
        gone = source.step(0).frame
    assert mask is not None
    assert truth is not None
    assert gone is not None
    assert mask.shape == seen.shape[:2]
    # Standing still, the picture changes where the object was, and nearly nowhere else.
    changed = (truth != gone).any(-1)
    assert (changed & mask).sum() > 0.8 * mask.sum()
    assert (changed & ~mask).sum() < 0.1 * mask.sum()


@pytest.mark.parametrize("world", [SPRITES, plan("gymnasium", "MiniGrid-Empty-8x8-v0")])
def test_objects_vanish_and_players_move(world: RecordPlan) -> None:
    with closing(open_branching(world)) as source:
        source.reset(1)
        handle, place = source.save(), source.position()
        truth = source.step(0).frame
        for change in (
            lambda: source.remove_object(0) is not None,
            lambda: source.teleport(np.random.default_rng(0)),
        ):
            source.restore(handle)
            assert change()
            assert not np.array_equal(source.step(0).frame, truth)  # type: ignore
        assert source.position()[:2] != place[:2]  # type: ignore


def test_fresh_episodes() -> None:
    recorded = {derive_seed(7, "b", attempt) for attempt in range(9)}
    assert recorded.isdisjoint(islice(fresh_seeds("branch", SPRITES, 7, 7), 500))
    # Were one of them the same, it would be left out.
    many = replace(SPRITES, frames=3)
    first = next(fresh_seeds("branch", many, 7, 7))
    assert first == derive_seed("branch", 7, "b", 0)


def test_states_have_their_context_and_every_outcome() -> None:
    config = BranchConfig(
        plans=(BranchPlan(name="b", states=10),), every=3, states_per_episode=4, history=3
    )
    states = list(branch_states(SPRITES, 10, config, 7))
    episodes = [state.episode for state in states]
    assert episodes == sorted(episodes)
    assert max(episodes.count(episode) for episode in episodes) == 4
    assert set(episodes) == set(range(max(episodes) + 1))
    for state in states:
        assert len(state.frames) == 3
        assert len(state.actions) == 2
        assert len(state.outcomes) == 5
        assert state.step >= 2
        assert state.outcomes[state.taken] is not None
    assert any(
        state.removed is not None and not np.array_equal(state.removed, state.outcomes[state.taken])  # type: ignore
        for state in states
    )
    # The context is of the played episode, and an outcome what the game shows after the action.
    first = states[0]
    with closing(open_source(SPRITES)) as source:
        source.reset(next(fresh_seeds("branch", SPRITES, 7, 7)))
        policy = automatic_policy(SPRITES, source.actions)
        policy.reset(derive_seed(next(fresh_seeds("branch", SPRITES, 7, 7)), "policy"))
        frame = first.frames[0]
        for _ in range(first.step):
            frame = source.step(policy.choose(frame)).frame  # type: ignore
        assert np.array_equal(frame, first.frames[-1])
        assert policy.choose(frame) == first.taken
        assert np.array_equal(
            source.step(first.taken).frame,  # type: ignore
            first.outcomes[first.taken],  # type: ignore
        )
    with pytest.raises(DataError, match="100 episodes in a row ended before a state"):
        list(branch_states(replace(SPRITES, max_episode_steps=2), 1, config, 7))


@pytest.mark.parametrize("world", [SPRITES, plan("gymnasium", "MiniGrid-Empty-8x8-v0")])
def test_the_mask_is_where_the_object_was(world: RecordPlan) -> None:
    with closing(open_branching(world)) as source:
        before = source.reset(1)
        mask = source.remove_object(0)
        assert mask is not None
        after = source.step(0).frame
        assert after is not None
        shown = (before != after).any(-1) & mask
        # A cell's border stays; a sprite may move on over its own place.
        assert shown.sum() > 0.5 * mask.sum() > 4
        assert mask.shape == before.shape[:2]

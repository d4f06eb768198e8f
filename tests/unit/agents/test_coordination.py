"""Rounds: who is heard, who is not, what is dropped, who makes way."""

from __future__ import annotations

import threading
import time
from collections import Counter

import numpy as np
import pytest
from tinyembodied import ACTION, starts, tiny_compressor, tiny_generator

from iwm.agents.config import CoordinationConfig
from iwm.agents.coordination import PHASES, Coordinator, distance_to_nearest
from iwm.agents.exchange import Bus, Inbox, Message
from iwm.agents.imagination import Goal, Imagination
from iwm.agents.integrated import IntegratedAgent
from iwm.errors import ConfigError

GENERATOR = tiny_generator()
COMPRESSOR = tiny_compressor(GENERATOR)
NAMES = ("ann", "bob", "cy")
GOALS = [Goal(name) for name in NAMES]


def team(peers: tuple[str, ...] = (), **settings: object) -> Coordinator:
    config = CoordinationConfig(**settings)  # type: ignore[arg-type]
    return Coordinator(GENERATOR, COMPRESSOR, NAMES, peers=peers, config=config)


def said(goal: object = 1) -> str:
    return COMPRESSOR.compress(GENERATOR.generate(starts(1)).trajectory(0, 0), goal, 0.5)  # type: ignore[arg-type]


def test_a_round() -> None:
    agents = team()
    done = agents.step(starts(3), GOALS)
    assert done.actions.shape == (3, ACTION)
    assert [message.sender for message in done.messages] == list(NAMES)
    assert all(len(message.text.encode()) <= 49 for message in done.messages)
    assert [set(read) for read in done.read] == [set(NAMES) - {name} for name in NAMES]
    assert done.read[0]["bob"].goal == "bob"
    assert set(done.milliseconds) == {*PHASES, "total"}
    assert done.silent == ()
    assert agents.dropped == Counter()
    again = agents.step(starts(3), GOALS)
    assert again.number == 1
    assert not agents.dropped


def test_the_first_in_the_order_keeps_its_word_and_the_order_turns() -> None:
    agents = team(team=100.0)
    for number in range(6):
        done = agents.step(starts(3, seed=number), GOALS)
        first = number % 3
        assert done.chosen[first] == done.announced[first]
    alone = team(team=0.0)
    done = alone.step(starts(3), GOALS)
    assert (done.chosen == done.announced).all()


def test_the_others_keep_away_or_together() -> None:
    """With nothing but the team to care for, the last in the order takes the farthest future,
    or the nearest.
    """
    away, together = (team(team=weight).step(starts(3), GOALS) for weight in (1e6, -1e6))
    own = COMPRESSOR.codec.project(GENERATOR.generate(starts(3), GOALS, seed=0).states)[2]
    plans = np.stack([away.read[2][name].features for name in ("ann", "bob")])  # type: ignore[misc]
    distance = distance_to_nearest(own, plans)
    assert away.chosen[2] == distance.argmax()
    assert together.chosen[2] == distance.argmin()


def test_distance_is_that_of_the_definition() -> None:
    rng = np.random.default_rng(0)
    own, others = rng.normal(size=(4, 9, 3)), rng.normal(size=(2, 7, 3))
    plain = np.linalg.norm(own[:, None, :7] - others[None], axis=-1).min(1).mean(-1)
    found = distance_to_nearest(own.astype(np.float32), others.astype(np.float32))
    assert found == pytest.approx(plain, rel=1e-4)


def test_a_silent_agent_does_not_stall_the_round() -> None:
    agents = team(peers=("dan",), deadline_s=0.05, patience=2)
    for _ in range(2):
        begun = time.monotonic()
        done = agents.step(starts(3), GOALS)
        assert done.silent == ("dan",)
        assert time.monotonic() - begun >= 0.05
    assert agents.silences == {"dan": 2}
    # Nobody waits for it any more, until it speaks.
    assert agents.step(starts(3), GOALS).milliseconds["parse"] < 50
    agents.bus.broadcast(Message("dan", 3, said()))
    done = agents.step(starts(3), GOALS)
    assert done.silent == ()
    assert all("dan" in read for read in done.read)
    agents.step(starts(3), GOALS)
    assert agents.silences == {"dan": 4}


def test_who_speaks_within_the_deadline_is_heard() -> None:
    agents = team(peers=("dan",), deadline_s=5.0)

    def speak() -> None:
        while agents.bus.posted < 3:  # the others have spoken
            time.sleep(0.001)
        agents.bus.broadcast(Message("dan", 0, said()))

    speaker = threading.Thread(target=speak)
    speaker.start()
    done = agents.step(starts(3), GOALS)
    speaker.join()
    assert done.silent == ()
    assert all("dan" in read for read in done.read)


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (Message("dan", 0, "not JSON"), "not_json"),
        (Message("dan", 0, "x" * 50), "too_long"),
        (Message("dan", 0, '{"g":"' + "😀" * 11 + '"}'), "too_long"),
        (Message("dan", 0, '{"goal":1}'), "malformed"),
        (Message("dan", 0, b"\xff\xfe"), "not_json"),  # type: ignore[arg-type]
        (Message("eve", 0, '{"g":1}'), "unknown_agent"),
        (Message(["dan"], 0, '{"g":1}'), "unknown_agent"),  # type: ignore[arg-type]
        (Message("dan", -1, '{"g":1}'), "stale_round"),
        (Message("dan", 1, '{"g":1}'), "stale_round"),
        (Message("ann", 0, '{"g":1}'), "repeated"),
    ],
)
def test_what_is_dropped_is_counted(message: Message, reason: str) -> None:
    agents = team(peers=("dan",), deadline_s=0.0)
    agents.bus.broadcast(message)
    done = agents.step(starts(3), GOALS)
    heard = 2 if message.sender == "ann" else 3  # the bus brings nobody its own words
    assert agents.dropped == {reason: heard}
    assert done.silent == ("dan",)
    assert done.read[1]["ann"].goal in ("ann", 1)


def test_a_flood_is_bounded() -> None:
    bus = Bus(["ann", "bob"], capacity=10)
    for number in range(25):
        bus.broadcast(Message("bob", number, "{}"))
    assert len(bus.drain("ann")) == 10
    assert bus.drain("bob") == []
    assert bus.overflowed == {"ann": 15}


def test_an_inbox_of_its_own() -> None:
    inbox = Inbox(["ann"], COMPRESSOR)
    inbox.begin(4)
    inbox.take([Message("ann", 4, '{"g":"north","c":90}'), Message("ann", 3, '{"g":1}')])
    assert inbox.read["ann"].confidence == 0.9
    assert inbox.dropped == {"stale_round": 1}
    inbox.begin(5)
    assert inbox.read == {}


def test_names_must_differ() -> None:
    for agents in ((), ("ann", "ann")):
        with pytest.raises(ConfigError, match="every name once"):
            Coordinator(GENERATOR, COMPRESSOR, agents)
    with pytest.raises(ConfigError, match="every name once"):
        team(peers=("ann",))


def test_observations_are_encoded() -> None:
    agents = Coordinator(
        GENERATOR, COMPRESSOR, NAMES, encode=lambda frames: np.stack(frames).mean((1, 2))
    )
    frames = [np.full((4, 4, 6), i, np.float32) for i in range(3)]
    assert agents.step(frames, GOALS).actions.shape == (3, ACTION)


def test_one_agent_thinks_and_acts() -> None:
    agent = IntegratedAgent(GENERATOR, COMPRESSOR)
    thought = agent.think_and_act(starts(1)[0], "north")
    assert thought.verdict.source == "heuristic"
    assert (thought.action == thought.trajectory.actions[0]).all()
    meant = COMPRESSOR.decompress(thought.intention)
    assert meant.goal == "north"
    assert meant.confidence == pytest.approx(thought.verdict.confidence, abs=0.006)
    assert isinstance(thought.imagination, Imagination)
    later = agent.think_and_act(starts(1)[0], Goal("north"))
    assert (later.imagination.actions[0, 0, :-1] == thought.trajectory.actions[1:]).all()
    agent.reset()
    again = agent.think_and_act(starts(1)[0], "north")
    assert again.intention == thought.intention

"""N agents, round by round: imagine, choose, tell the others, hear them, act.

Everything that a model computes is computed for all agents at once; everything that an agent
knows of the others, it knows from messages of at most 49 bytes.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from iwm.agents.config import CoordinationConfig
from iwm.agents.exchange import Bus, Dropped, Inbox, Message
from iwm.agents.imagination import Goal, Imagination, ImaginedTrajectoryGenerator
from iwm.agents.intention import Intention, IntentionCompressor
from iwm.agents.reasoner import HeuristicReasoner, confidence, standardised
from iwm.errors import ConfigError

Floats = npt.NDArray[np.float32]
PHASES = ("encode", "imagine", "select", "compress", "broadcast", "parse", "act")


@dataclass(frozen=True, eq=False)
class Round:
    """What a round came to.

    ``actions [N, A]``; ``announced``, ``chosen``: places [N] of the futures that were told, and
    that were followed; ``messages``: as broadcast; ``read``: intentions that each agent read;
    ``silent``: agents whose intention did not come; ``milliseconds``: by phase, and ``total``.
    """

    number: int
    actions: Floats
    announced: npt.NDArray[np.int64]
    chosen: npt.NDArray[np.int64]
    messages: tuple[Message, ...]
    read: tuple[dict[str, Intention], ...]
    silent: tuple[str, ...]
    milliseconds: dict[str, float]


class Coordinator:
    """Agents that live here, among others who may live elsewhere.

    Args:
        generator: imagines for all agents here.
        compressor: of all agents.
        agents: those that live here, in the order of states and goals.
        peers: others who send intentions over the bus.
        encode: observations of all agents here -> states [N, S]; the observations themselves
            when ``None``.
        bus: shared with the peers; one of its own when ``None``.
        config: settings; the defaults when ``None``.

    Attributes:
        dropped: messages that were not read, by reason.
        silences: rounds in which an agent's intention did not come in time, by agent.
    """

    def __init__(
        self,
        generator: ImaginedTrajectoryGenerator,
        compressor: IntentionCompressor,
        agents: Sequence[str],
        *,
        peers: Sequence[str] = (),
        encode: Callable[[Any], npt.ArrayLike] | None = None,
        bus: Bus | None = None,
        config: CoordinationConfig | None = None,
    ) -> None:
        everyone = (*agents, *peers)
        if not agents or len(set(everyone)) != len(everyone):
            raise ConfigError("agents: expected at least one, and every name once")
        self._generator, self._compressor = generator, compressor
        self._agents, self._peers = tuple(agents), tuple(peers)
        self._order = sorted(everyone)
        self._encode = encode or (lambda observations: observations)
        self.config = config or CoordinationConfig()
        self.bus = bus or Bus(everyone)
        self.dropped: Counter[Dropped] = Counter()
        self.silences: Counter[str] = Counter()
        self._missed: Counter[str] = Counter()
        self._inboxes = {
            name: Inbox([other for other in everyone if other != name], compressor, self.dropped)
            for name in agents
        }
        self._rule = HeuristicReasoner(self.config.caution)
        self._previous: Floats | None = None
        self.number = 0

    def reset(self) -> None:
        """Forget what was chosen: a new episode."""
        self._previous = None

    def step(self, observations: Any, goals: Sequence[Goal]) -> Round:
        """One round.

        Args:
            observations: of all agents here, as ``encode`` takes them.
            goals: one for each agent here.

        Raises:
            ModelError: states or goals that do not fit the model.
        """
        clock = _Clock()
        number, names = self.number, self._agents
        self.number += 1
        states = self._encode(observations)
        clock.lap("encode")
        futures = self._generator.generate(
            states,
            goals,
            previous=self._previous,
            codec=self._compressor.codec,
            seed=number % 2**31,
        )
        clock.lap("imagine")
        scores = self._rule.scores(futures.returns, futures.uncertainty)
        announced = scores.argmax(1)
        clock.lap("select")
        messages = self._messages(number, futures, announced, goals)
        clock.lap("compress")
        for inbox in self._inboxes.values():
            inbox.begin(number)
        for message in messages:
            self.bus.broadcast(message)
        clock.lap("broadcast")
        silent = self._hear()
        clock.lap("parse")
        chosen = self._choose(number, futures, scores, announced)
        rows = np.arange(len(names))
        self._previous = futures.actions[rows, chosen]
        actions = self._previous[:, 0]
        clock.lap("act")
        return Round(
            number,
            actions,
            announced,
            chosen,
            messages,
            tuple(self._inboxes[name].read for name in names),
            silent,
            clock.milliseconds(),
        )

    def _messages(
        self,
        number: int,
        futures: Imagination,
        announced: npt.NDArray[np.int64],
        goals: Sequence[Goal],
    ) -> tuple[Message, ...]:
        rows = np.arange(len(announced))
        sure = confidence(futures.uncertainty[rows, announced])
        return tuple(
            Message(
                name,
                number,
                self._compressor.compress(
                    futures.trajectory(row, int(announced[row])), goals[row].name, float(sure[row])
                ),
            )
            for row, name in enumerate(self._agents)
        )

    def _hear(self) -> tuple[str, ...]:
        """Read until everyone who is waited for was heard, or the deadline; returns who was not
        heard at all.
        """
        deadline = time.monotonic() + self.config.deadline_s
        while True:
            posted = self.bus.posted
            for name, inbox in self._inboxes.items():
                inbox.take(self.bus.drain(name))
            missing = [
                other
                for other in (*self._agents, *self._peers)
                if any(
                    other != name and other not in inbox.read
                    for name, inbox in self._inboxes.items()
                )
            ]
            awaited = [name for name in missing if self._missed[name] < self.config.patience]
            if not awaited or not self.bus.wait(posted, deadline):
                break
        for name in (*self._agents, *self._peers):
            if name in missing:
                self._missed[name] += 1
                self.silences[name] += 1
            else:
                self._missed[name] = 0
        return tuple(missing)

    def _choose(
        self,
        number: int,
        futures: Imagination,
        scores: Floats,
        announced: npt.NDArray[np.int64],
    ) -> npt.NDArray[np.int64]:
        """What each agent follows, knowing what those before it mean to do.

        If all made way for all, two who meet would step aside together, again and again. In
        each round there is an order, another one every round, and an agent makes way for those
        before it.
        """
        if self.config.team == 0:
            return announced
        chosen = announced.copy()
        count = len(self._order)
        place = {name: (at - number) % count for at, name in enumerate(self._order)}
        own = futures.features
        assert own is not None
        for row, name in enumerate(self._agents):
            plans = [
                intention.features
                for sender, intention in self._inboxes[name].read.items()
                if intention.features is not None and place[sender] < place[name]
            ]
            if plans:
                apart = standardised(distance_to_nearest(own[row], np.stack(plans)))
                chosen[row] = (scores[row] + self.config.team * apart).argmax()
        return chosen


def distance_to_nearest(own: Floats, others: Floats) -> Floats:
    """Mean distance over time to whoever is nearest at each step, in standard deviations.

    Args:
        own: [n, H, F], futures in a codec's directions.
        others: [M, H', F], plans of others; where they end early or late, the shorter counts.
    """
    steps = min(own.shape[1], others.shape[1])
    own, others = own[:, :steps], others[:, :steps]
    # |a - b|^2 = |a|^2 + |b|^2 - 2 ab: a product a step instead of n x M differences.
    cross = own.swapaxes(0, 1) @ others.transpose(1, 2, 0)
    squares = np.square(own).sum(-1).T[..., None] + np.square(others).sum(-1).T[:, None]
    squared = squares - 2 * cross
    nearest = np.sqrt(np.maximum(squared.min(-1), 0))
    return np.asarray(nearest.mean(0), np.float32)


class _Clock:
    def __init__(self) -> None:
        self._started = self._last = time.perf_counter()
        self._laps: dict[str, float] = {}

    def lap(self, phase: str) -> None:
        """The phase that ends now."""
        now = time.perf_counter()
        self._laps[phase] = 1000 * (now - self._last)
        self._last = now

    def milliseconds(self) -> dict[str, float]:
        """By phase, and in total."""
        return {**self._laps, "total": 1000 * (self._last - self._started)}

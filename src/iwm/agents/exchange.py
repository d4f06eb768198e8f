"""Messages between agents: a bus in one process, and an inbox that trusts nobody."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from iwm.agents.intention import Intention, IntentionCompressor, NotJson, TooLong
from iwm.errors import DataError

Dropped = Literal[
    "not_json", "too_long", "malformed", "unknown_agent", "stale_round", "repeated", "overflow"
]
"""Why a message was not read. ``repeated``: a second one of the same agent and round;
``overflow``: more messages than an agent's place on the bus holds."""


@dataclass(frozen=True)
class Message:
    """An intention on its way. The envelope is the transport's: who sent it, in which round."""

    sender: str
    round: int
    text: str


class Bus:
    """Carries messages between the agents of one process. Any thread may use it.

    Args:
        agents: who receives.
        capacity: messages that wait for one agent; older ones are dropped for newer.
    """

    def __init__(self, agents: Sequence[str], capacity: int = 256) -> None:
        self._waiting: dict[str, deque[Message]] = {name: deque(maxlen=capacity) for name in agents}
        self._arrived = threading.Condition()
        self._posted = 0
        self.overflowed: Counter[str] = Counter()

    def broadcast(self, message: Message) -> None:
        """To all but its sender."""
        with self._arrived:
            for name, waiting in self._waiting.items():
                if name != message.sender:
                    if len(waiting) == waiting.maxlen:
                        self.overflowed[name] += 1
                    waiting.append(message)
            self._posted += 1
            self._arrived.notify_all()

    def drain(self, agent: str) -> list[Message]:
        """What has come for an agent, in order."""
        with self._arrived:
            waiting = self._waiting[agent]
            taken = list(waiting)
            waiting.clear()
        return taken

    @property
    def posted(self) -> int:
        """Messages broadcast so far."""
        return self._posted

    def wait(self, posted: int, deadline: float) -> bool:
        """Wait until more than ``posted`` messages were broadcast, or ``time.monotonic()``
        reaches the deadline; returns whether there are more.
        """
        with self._arrived:
            return self._arrived.wait_for(
                lambda: self._posted > posted, max(0.0, deadline - time.monotonic())
            )


class Inbox:
    """Reads one agent's messages of one round after another; what cannot be used is counted.

    Args:
        agents: whose messages are read.
        compressor: reads them.
        dropped: where to count; one of its own when ``None``.
    """

    def __init__(
        self,
        agents: Iterable[str],
        compressor: IntentionCompressor,
        dropped: Counter[Dropped] | None = None,
    ) -> None:
        self._known = frozenset(agents)
        self._compressor = compressor
        self.dropped: Counter[Dropped] = Counter() if dropped is None else dropped
        self.round = -1
        self.read: dict[str, Intention] = {}
        """Of this round, by sender."""

    def begin(self, round: int) -> None:
        """A new round: what was read before is forgotten."""
        self.round, self.read = round, {}

    def take(self, messages: Sequence[Message]) -> None:
        """Read messages; never raises for what is in them."""
        for message in messages:
            sender = message.sender
            if not isinstance(sender, str) or sender not in self._known:
                self.dropped["unknown_agent"] += 1
            elif message.round != self.round:
                self.dropped["stale_round"] += 1
            elif sender in self.read:
                self.dropped["repeated"] += 1
            else:
                self._read(sender, message.text)

    def _read(self, sender: str, text: str) -> None:
        try:
            self.read[sender] = self._compressor.decompress(text)
        except TooLong:
            self.dropped["too_long"] += 1
        except NotJson:
            self.dropped["not_json"] += 1
        except DataError:
            self.dropped["malformed"] += 1

"""A service that is away is not asked at every frame: the agent's loop must go on."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from iwm.client import Refused
from iwm.errors import ServiceError

logger = logging.getLogger("iwm.agents")


class Availability:
    """Whether to ask a service now: after a failure not for a second, then two, then four ...

    Args:
        first_s: pause after the first failure in a row.
        longest_s: the longest pause.
        clock: seconds that only ever rise.
    """

    def __init__(
        self,
        first_s: float = 1.0,
        longest_s: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._first, self._longest, self._clock = first_s, longest_s, clock
        self._pause, self._until = 0.0, -float("inf")

    @property
    def away(self) -> bool:
        """Whether the last answer was none."""
        return self._pause > 0

    @property
    def ready(self) -> bool:
        """Whether to ask now."""
        return self._clock() >= self._until

    def answered(self) -> None:
        """The service has answered."""
        if self.away:
            logger.warning("world model: the service answers again")
        self._pause, self._until = 0.0, -float("inf")

    def failed(self, error: ServiceError) -> None:
        """A call failed. A refusal is an answer too, so it asks for no pause."""
        if isinstance(error, Refused):
            logger.warning("world model: %s", error)
            self.answered()
            return
        if not self.away:
            logger.warning("world model: away, going on without it: %s", error)
        self._pause = min(max(2 * self._pause, self._first), self._longest)
        self._until = self._clock() + self._pause

"""What a crowd of clients can get at most, whatever the service between them and the engine.

Clients that wait for their answers, as many as the crowd, fill no larger batch. And every answer
takes core-seconds that no service saves: of the engine in a batch of all of them, of decoding an
image, of a server that reads a request and writes an answer, of the client itself. The cores have
only so many a second, even if nobody ever waited for anybody.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Self


@dataclass(frozen=True)
class Costs:
    """Core-seconds an answer."""

    engine: float
    """In a batch of the whole crowd."""
    decoding: float
    """From an image's bytes to pixels."""
    http: float
    """Of a server that computes nothing."""
    clients: float
    """Of who asks it."""

    @property
    def total(self) -> float:
        """All of them."""
        return self.engine + self.decoding + self.http + self.clients


@dataclass(frozen=True)
class Bound:
    """Answers a second that no service exceeds, and what they cost."""

    answers: float
    costs: Costs

    @classmethod
    def of(cls, costs: Costs, cores: int, together: float) -> Self:
        """Of so many cores.

        Args:
            costs: of an answer.
            cores: of all.
            together: answers a second of the bare engine, in batches of the whole crowd.
        """
        return cls(min(together, cores / costs.total), costs)

    def __str__(self) -> str:
        parts = [f"{name} {1000 * cost:.3f}" for name, cost in asdict(self.costs).items() if cost]
        return f"at most {self.answers:,.1f}/s; core-ms an answer: {', '.join(parts)}"

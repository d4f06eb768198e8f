"""Which of the imagined futures to follow: by rule, or by asking a language model aside.

The rule answers at once and is the default. A language model takes seconds or minutes: it is
asked in a thread of its own, at most one question at a time, and its advice is a course to
keep to, which later questions are held against. The agent's loop never waits for it beyond a
budget.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from iwm.errors import ServiceError

Floats = npt.NDArray[np.float32]
Source = Literal["heuristic", "chat", "remembered"]

logger = logging.getLogger("iwm.agents")


@dataclass(frozen=True, eq=False)
class Question:
    """n futures of one agent.

    ``goal``: what for, in words. ``returns [n]``, ``uncertainty [n, H]``; ``courses
    [n, H, F]``: the futures, each number in standard deviations. ``step``: of the agent's clock.
    """

    goal: str
    returns: Floats
    uncertainty: Floats
    courses: Floats
    step: int = 0


@dataclass(frozen=True)
class Verdict:
    """The future to follow, how sure that is in [0, 1], who said so, and what was thought."""

    index: int
    confidence: float
    source: Source
    thoughts: str = field(default="", repr=False)


class Reasoner(Protocol):
    """Whoever can answer."""

    def reason(self, question: Question) -> Verdict:
        """Choose one of the futures.

        Raises:
            ServiceError: there is no answer.
        """
        ...


def standardised(values: npt.NDArray[np.floating]) -> Floats:
    """Values [..., n] in standard deviations from their mean; 0 where they do not differ."""
    centred = values - values.mean(-1, keepdims=True)
    spread = values.std(-1, keepdims=True)
    level = np.maximum(np.abs(values).max(-1, keepdims=True), 1.0)
    scaled = centred / np.where(spread > 1e-6 * level, spread, np.inf)
    return np.asarray(scaled, np.float32)


def confidence(uncertainty: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    """Share of the states' variance that the model expects to predict, over [..., H]."""
    explained: npt.NDArray[np.floating] = np.clip(1 - np.square(uncertainty), 0, 1).mean(-1)
    return explained


class HeuristicReasoner:
    """The best return, less what is unsure about it.

    Args:
        caution: weight of the mean uncertainty; both are in standard deviations over the n.
    """

    def __init__(self, caution: float = 0.25) -> None:
        self.caution = caution

    def scores(
        self, returns: npt.NDArray[np.floating], uncertainty: npt.NDArray[np.floating]
    ) -> Floats:
        """Of futures: returns [..., n], uncertainty [..., n, H]; higher is better."""
        risk = standardised(uncertainty.mean(-1))
        return np.asarray(standardised(returns) - self.caution * risk, np.float32)

    def reason(self, question: Question) -> Verdict:
        """Answers at once, always."""
        index = int(self.scores(question.returns, question.uncertainty).argmax())
        return Verdict(index, float(confidence(question.uncertainty[index])), "heuristic")


class BackgroundReasoner:
    """A slow reasoner aside of the loop, and a quick one for the meantime.

    Args:
        slow: asked in a thread; what it raises is a line in the log and a count.
        quick: answers whenever the slow one has not.
        budget_s: the longest that a question waits for its own answer.
        keep_steps: how long an advice is kept to; it is asked for anew half-way.
        pause_s: after a failure nobody is asked for so long.
        nearness: how far, in standard deviations, a future may be from an advised course and
            still be that course.
    """

    def __init__(
        self,
        slow: Reasoner,
        quick: HeuristicReasoner | None = None,
        *,
        budget_s: float = 0.0,
        keep_steps: int = 25,
        pause_s: float = 5.0,
        nearness: float = 0.5,
    ) -> None:
        self._slow, self._quick = slow, quick or HeuristicReasoner()
        self._budget_s, self._keep_steps, self._nearness = budget_s, keep_steps, nearness
        self._pause_s, self._resume = pause_s, -float("inf")
        self._lock = threading.Lock()
        self._busy = False
        self._advice: tuple[Question, Verdict] | None = None
        self.counts = {"asked": 0, "answered": 0, "failed": 0}

    def reason(self, question: Question) -> Verdict:
        """Within the budget, always."""
        with self._lock:
            advice = self._advice
        kept = None if advice is None else self._kept(question, *advice)
        fresh = advice is not None and question.step - advice[0].step < self._keep_steps / 2
        if kept is not None and fresh:
            return kept
        done = self._begin(question)
        if done is not None and self._budget_s > 0 and done.wait(self._budget_s):
            with self._lock:
                advice = self._advice
            if advice is not None and advice[0] is question:
                return advice[1]
        return kept or self._quick.reason(question)

    def _begin(self, question: Question) -> threading.Event | None:
        """Ask, unless an answer is awaited already or has just failed to come."""
        with self._lock:
            if self._busy or time.monotonic() < self._resume:
                return None
            self._busy = True
            self.counts["asked"] += 1
        done = threading.Event()
        threading.Thread(
            target=self._ask, args=(question, done), name="iwm-reason", daemon=True
        ).start()
        return done

    def _ask(self, question: Question, done: threading.Event) -> None:
        answer = None
        try:
            answer = self._slow.reason(question)
        except ServiceError as error:
            logger.warning("reasoner: %s; going on without it", error)
        except Exception as error:  # whatever it is: the loop goes on, and asks again
            logger.warning("reasoner: %s; going on without it", type(error).__name__)
        with self._lock:
            self._busy = False
            if answer is None:
                self.counts["failed"] += 1
                self._resume = time.monotonic() + self._pause_s
            else:
                self.counts["answered"] += 1
                self._advice = question, answer
        done.set()

    def _kept(self, question: Question, asked: Question, answer: Verdict) -> Verdict | None:
        """The future that keeps to an earlier advice; ``None`` where none does."""
        elapsed = question.step - asked.step
        course = asked.courses[answer.index]
        left = len(course) - elapsed
        same = question.goal == asked.goal and question.courses.shape[1:] == course.shape
        if not same or not 0 <= elapsed <= self._keep_steps or left < 1:
            return None
        off = question.courses[:, :left] - course[elapsed:]
        distance = np.sqrt(np.square(off).mean((1, 2)))
        index = int(distance.argmin())
        if distance[index] > self._nearness:
            return None
        sure = float(confidence(question.uncertainty[index]))
        return Verdict(index, min(sure, answer.confidence), "remembered", answer.thoughts)

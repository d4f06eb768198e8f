"""The arbiter: what to do now, from a plan, a reasoner or habit."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from iwm.agents.availability import Availability
from iwm.agents.being_state import Latent, VisionState
from iwm.agents.config import ArbiterConfig
from iwm.client import IWMClient, RolloutResult
from iwm.errors import ServiceError

logger = logging.getLogger("iwm.agents")

Reason = Literal["plan", "rollout", "remembered", "reasoner", "surprise", "blind", "away"]
Score = Callable[[RolloutResult], float]
"""How good an imagined future is; higher is better."""


@dataclass(frozen=True)
class Decision:
    """An action, and why.

    ``reason``: ``plan`` (of ``/plan``), ``rollout`` (the best of the sequences given),
    ``remembered`` (the rest of an older plan, the service being away), ``reasoner`` (its
    advice), ``surprise`` (wait and look again), ``blind`` (nothing seen yet), ``away`` (no
    service and no plan left). ``sequence``: this action and those planned after it; ``score``:
    of the plan it is from, higher is better, NaN without one. ``slow_down``: the world is not
    what was expected; go carefully.
    """

    action: str
    reason: Reason
    sequence: tuple[str, ...]
    score: float
    slow_down: bool
    milliseconds: float


Reasoner = Callable[[VisionState], Awaitable[str | None]]
"""Asked when the world model is not confident: an action, or ``None`` for no opinion."""


class ActionArbiter:
    """Chooses actions for a state; never raises because the service is away.

    Args:
        client: asks the service; a perception module's may be shared.
        config: settings; the defaults if ``None``.
        reasoner: asked on low confidence.
    """

    def __init__(
        self,
        client: IWMClient,
        config: ArbiterConfig | None = None,
        reasoner: Reasoner | None = None,
    ) -> None:
        self.client, self.config, self.reasoner = client, config or ArbiterConfig(), reasoner
        self._available = Availability()
        self.reset()

    def reset(self) -> None:
        """Forget the last plan: a new episode."""
        self._plan: deque[str] = deque()
        self._fresh, self._waits, self._score = 0, 0, math.nan
        self._wanted: tuple[Any, ...] = ()

    async def request_action(
        self,
        being_state: VisionState,
        goal: npt.NDArray[Any] | None = None,
        *,
        scoring: str | None = None,
        sequences: Sequence[Sequence[str]] | None = None,
        score: Score | None = None,
    ) -> Decision:
        """The action to take now.

        Args:
            being_state: any object with the attributes of a vision state.
            goal: a latent ``[D]``, or uint8 pixels ``[H, W, 3]`` (without ``sequences``), to
                get to.
            scoring: instead of a goal: ``certainty`` (go where the model knows its way) or
                ``curiosity`` (where it does not).
            sequences: candidates by name; they are rolled out and the best one is taken.
                Without them the service searches.
            score: of a rollout; by default nearness to the goal, or confidence without one.

        Raises:
            ValueError: nothing is wanted, or a goal of pixels together with sequences.
        """
        _check(goal, scoring, sequences)
        started = time.perf_counter()
        startled = being_state.vision_prediction_surprise > self.config.surprise_threshold
        action, reason = await self._choose(
            being_state, startled, (goal, scoring, sequences, score)
        )
        planned = reason in ("plan", "rollout", "remembered")
        return Decision(
            action,
            reason,
            (action, *self._plan) if planned else (action,),
            self._score if planned else math.nan,
            startled,
            1000 * (time.perf_counter() - started),
        )

    async def _choose(
        self, state: VisionState, startled: bool, wanted: tuple[Any, ...]
    ) -> tuple[str, Reason]:
        config = self.config
        start = state.vision_core_latent
        if start is None:
            return config.wait_action, "blind"
        if not startled:
            self._waits = 0
        elif config.on_surprise == "wait" and self._waits < config.max_waits:
            self._waits += 1
            self._fresh = 0
            return config.wait_action, "surprise"
        # Without a frame before there was no prediction, so there is no confidence in it.
        judged = state.vision_core_latent_prev is not None
        if judged and state.vision_mrr < config.confidence_threshold:
            advice = await self._ask(state)
            if advice is not None:
                self._fresh = 0
                return advice, "reasoner"
        same = len(wanted) == len(self._wanted) and all(
            new is old for new, old in zip(wanted, self._wanted, strict=True)
        )
        if not same:
            self._wanted, self._fresh = wanted, 0
            self._plan.clear()
        reason: Reason = "rollout" if wanted[2] is not None else "plan"
        if startled or self._fresh == 0:
            try:
                await self._think(start, *wanted)
            except ServiceError as error:
                self._available.failed(error)
            except _NotAsked:
                pass
            else:
                self._available.answered()
                self._fresh = 1 if startled else config.act
        if not self._plan:
            return config.wait_action, "away"
        if self._fresh == 0:
            reason = "remembered"
        else:
            self._fresh -= 1
        return self._plan.popleft(), reason

    async def _ask(self, state: VisionState) -> str | None:
        """The reasoner's advice; ``None`` if there is none, or it fails or takes too long."""
        if self.reasoner is None:
            return None
        try:
            async with asyncio.timeout(self.config.reasoner_timeout_s):
                return await self.reasoner(state)
        except Exception as error:  # whatever it is: the loop goes on
            logger.warning("reasoner: %r; deciding without it", error)
            return None

    async def _think(
        self,
        start: Latent,
        goal: npt.NDArray[Any] | None,
        scoring: str | None,
        sequences: Sequence[Sequence[str]] | None,
        score: Score | None,
    ) -> None:
        """Make a plan.

        Raises:
            ServiceError: the service did not answer.
            _NotAsked: it was not asked, since it was away a moment ago.
        """
        if not self._available.ready:
            raise _NotAsked
        if sequences is not None:
            rate = score or _nearness(goal)
            rolled = await asyncio.gather(
                *(self.client.rollout(start, actions=list(names)) for names in sequences)
            )
            scores = [_or_worst(rate(one)) for one in rolled]
            best = int(np.argmax(scores))
            self._plan, self._score = deque(sequences[best]), scores[best]
            return
        pixels = goal is not None and _is_image(goal)
        found = await self.client.plan(
            start,
            None if pixels else goal,
            goal_image=goal if pixels else None,
            scoring=scoring,
            horizon=self.config.horizon,
            candidates=self.config.candidates,
            iterations=self.config.iterations,
            seed=self.config.seed,
            actions=self.config.actions or None,
        )
        self._plan, self._score = deque(found.actions), found.score


class _NotAsked(Exception):
    """The service was away a moment ago."""


def _check(
    goal: npt.NDArray[Any] | None,
    scoring: str | None,
    sequences: Sequence[Sequence[str]] | None,
) -> None:
    if sequences is not None:
        if not sequences or not all(sequences):
            raise ValueError("sequences: expected at least one, none of them empty")
        if goal is not None and _is_image(goal):
            raise ValueError("goal: with sequences, expected a latent; encode the picture first")
    elif (goal is None) == (scoring is None):
        raise ValueError("expected a goal, a scoring or sequences")


def _is_image(goal: npt.NDArray[Any]) -> bool:
    return goal.dtype == np.uint8 and goal.ndim == 3


def _or_worst(score: float) -> float:
    return score if math.isfinite(score) else -math.inf


def _nearness(goal: npt.NDArray[Any] | None) -> Score:
    """Nearness of imagined latents to the goal's, or confidence in them without a goal."""

    def near(rolled: RolloutResult) -> float:
        if goal is None:
            return float(rolled.mrr_seq.mean())
        return -float(np.sqrt(np.square(rolled.z_cls_seq - goal).mean(-1)).mean())

    return near

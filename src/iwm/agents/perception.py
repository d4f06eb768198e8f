"""Perception: frames in, vision fields of a state out."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from iwm.agents.abstraction import AbstractionMeter, jitter
from iwm.agents.availability import Availability
from iwm.agents.being_state import Latent, VisionState
from iwm.client import IWMClient, Refused, RolloutResult
from iwm.errors import ServiceError

logger = logging.getLogger("iwm.agents")

Pixels = npt.NDArray[np.uint8]
Action = str | Sequence[float] | npt.NDArray[Any]
"""A name of the model's vocabulary (or a common name of it), or an action vector."""

NO_ACTION = (0.0,)
"""The vector of an action that is not known; the service fills it up with zeros."""


class IWMPerceptionModule:
    """Sees frames through the service, and notices what it did not expect.

    A service that is away never stops the agent: calls return ``False`` or ``None`` at once
    most of the time, and it is asked again after pauses that grow to half a minute.

    Args:
        iwm_url: where the service is.
        enable_surprise: write ``vision_prediction_surprise``.
        enable_rollouts: let :meth:`imagine_future` ask the service.
        surprise_threshold: above it a frame counts as surprising; on the calibrated scale
            ordinary play stays below 2.0 in 95 % of frames.
        enable_dual: write ``vision_semantic`` and ``vision_equivariant``, which needs a service
            with both streams.
        abstraction_every: measure ``vision_abstraction_index`` once in so many frames (it takes
            one more ``/encode``); 0: never.
        client: asks the service; one of its own with little patience if ``None``.
        clock: seconds, for pauses and latencies.
    """

    def __init__(
        self,
        iwm_url: str = "http://localhost:8001",
        enable_surprise: bool = True,
        enable_rollouts: bool = False,
        surprise_threshold: float = 2.0,
        *,
        enable_dual: bool = False,
        abstraction_every: int = 50,
        client: IWMClient | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.client = client or IWMClient(iwm_url, timeout=5.0, retries=1)
        self.enable_surprise, self.enable_rollouts = enable_surprise, enable_rollouts
        self.enable_dual, self.surprise_threshold = enable_dual, surprise_threshold
        self._every, self._clock = abstraction_every, clock
        self._available = Availability(clock=clock)
        self._meter, self._rng = AbstractionMeter(), np.random.default_rng(0)
        self._unknown: set[str] = set()
        self._streams = True
        self._scale: float | None = None
        self._frames = self._missed = self._surprises = self._measured = 0
        self._total_surprise = self._most_surprise = self._busy_s = 0.0

    async def process_frame(
        self, frame: Pixels, being_state: VisionState, action_taken: Action | None = None
    ) -> bool:
        """See a frame and write what was seen to the state.

        ``vision_mrr`` is the model's confidence in its prediction of this frame; it stays what
        it was where the model carries no calibration. Surprise is ``/surprise``'s after an
        action that the model knows; otherwise the distance to the prediction without an action,
        brought to the model's scale.

        Args:
            frame: uint8 RGB pixels ``[H, W, 3]``.
            being_state: is written to, but for fields that could not be measured.
            action_taken: what led from the frame before to this one.

        Returns:
            Whether the frame was seen. If not, the state is as it was.

        Raises:
            ValueError: the frame is not uint8.
        """
        if not self._available.ready:
            self._missed += 1
            return False
        started = self._clock()
        try:
            seen = await self.client.encode_image(frame)
        except ServiceError as error:
            self._available.failed(error)
            self._missed += 1
            return False
        self._available.answered()
        self._frames += 1
        before = being_state.vision_core_latent
        being_state.vision_core_latent_prev = before
        being_state.vision_core_latent = seen.z_cls
        being_state.vision_core_timestamp = seen.timestamp
        # Of this frame nothing is known yet; that of the frame before would mislead.
        being_state.vision_prediction_surprise = 0.0
        try:
            # After another model has taken over, its latents have nothing to do with the last.
            if before is not None and before.shape == seen.z_cls.shape:
                await self._look_back(being_state, before, seen.z_cls, action_taken)
            await self._more(frame, being_state, seen.z_cls)
        except ServiceError as error:
            self._available.failed(error)
        self._busy_s += self._clock() - started
        return True

    async def _look_back(
        self, state: VisionState, before: Latent, now: Latent, action: Action | None
    ) -> None:
        """Hold what came against what was predicted."""
        surprise: float | None = None
        known: dict[str, Any] | None = None
        if isinstance(action, str):
            known = None if action in self._unknown else {"action": action}
        elif action is not None:
            known = {"aug_params": action}
        try:
            if known is not None and self.enable_surprise:
                found, step = await asyncio.gather(
                    self.client.surprise(before, now, **known),
                    self.client.predict_next(before, **known),
                )
                surprise = found.surprise
            else:
                step = await self.client.predict_next(
                    before, **(known or {"aug_params": NO_ACTION})
                )
        except Refused as error:
            if not isinstance(action, str) or known is None or error.status != 422:
                raise
            logger.warning("world model: %s; from now on as without an action", error)
            self._unknown.add(action)
            await self._look_back(state, before, now, None)
            return
        if math.isfinite(step.mrr):
            state.vision_mrr = step.mrr
        if not self.enable_surprise:
            return
        if surprise is None:
            distance = float(np.linalg.norm(step.z_cls_pred - now))
            surprise = distance * await self._latent_scale()
        state.vision_prediction_surprise = surprise
        self._measured += 1
        self._total_surprise += surprise
        self._most_surprise = max(self._most_surprise, surprise)
        if surprise > self.surprise_threshold:
            self._surprises += 1
            logger.info("world model: surprise %.2f after %s", surprise, action)

    async def _latent_scale(self) -> float:
        """What brings a distance to the scale of surprise; 1 for a model without calibration."""
        if self._scale is None:
            scale = (await self.client.model()).latent_scale
            self._scale = scale if math.isfinite(scale) else 1.0
        return self._scale

    async def _more(self, frame: Pixels, state: VisionState, now: Latent) -> None:
        """Both streams, and from time to time the abstraction index."""
        if self.enable_dual and self._streams:
            try:
                both = await self.client.encode_dual(frame)
            except Refused as error:
                logger.warning("world model: %s; going on without the streams", error)
                self._streams = False
            else:
                state.vision_semantic, state.vision_equivariant = both.semantic, both.equivariant
        if self._every and (self._frames - 1) % self._every == 0:
            changed = await self.client.encode_image(jitter(frame, self._rng))
            index = self._meter.update(now, changed.z_cls)
            if index is not None:
                state.vision_abstraction_index = index

    async def imagine_future(
        self, being_state: VisionState, actions: Sequence[str] | Sequence[Sequence[float]]
    ) -> RolloutResult | None:
        """What the model expects to see after each of some actions.

        Args:
            being_state: where to start.
            actions: names, or action vectors.

        Returns:
            The rollout; ``None`` when rollouts are not enabled, nothing was seen yet, there are
            no actions, or the service does not answer.
        """
        start = being_state.vision_core_latent
        if not self.enable_rollouts or start is None or len(actions) == 0:
            return None
        if not self._available.ready:
            return None
        names = [action for action in actions if isinstance(action, str)]
        rows = [action for action in actions if not isinstance(action, str)]
        try:
            rolled = await self.client.rollout(start, rows or None, actions=names or None)
        except ServiceError as error:
            self._available.failed(error)
            return None
        self._available.answered()
        return rolled

    async def check_health(self) -> bool:
        """Ask how the service is, now; whether it is there and has a model.

        Also forgets what the model did not know or have: another one may be served now.
        """
        healthy = (await self.client.health()).get("status") == "ok"
        if healthy:
            self._available.answered()
            self._unknown.clear()
            self._streams, self._scale = True, None
        return healthy

    def get_stats(self) -> dict[str, Any]:
        """Figures since the beginning; latencies in milliseconds per frame seen."""
        return {
            "frames_processed": self._frames,
            "frames_missed": self._missed,
            "surprises_measured": self._measured,
            "high_surprises": self._surprises,
            "mean_surprise": self._total_surprise / self._measured if self._measured else 0.0,
            "max_surprise": self._most_surprise,
            "mean_latency_ms": 1000 * self._busy_s / self._frames if self._frames else 0.0,
            "service_available": not self._available.away,
            "total_requests": self.client.total_requests,
            "total_errors": self.client.total_errors,
        }

    async def close(self) -> None:
        """Close the connections."""
        await self.client.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

"""The asynchronous client."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx
from tenacity import AsyncRetrying

from iwm.client import calls
from iwm.client.calls import Call, Earlier, Numbers, Pixels, Rows, png_of
from iwm.client.connection import FAILURES, RETRIES, Connection, answer
from iwm.client.results import (
    DreamResult,
    DualResult,
    EncodeResult,
    ImagineResult,
    IntentionResult,
    ModelCard,
    PlanResult,
    PredictResult,
    ReconstructResult,
    RolloutResult,
    SurpriseResult,
)

T = TypeVar("T")


class IWMClient(Connection):
    """Asynchronous client; also a context manager (``async with``).

    All calls but :meth:`health` raise :class:`~iwm.errors.ServiceError`:
    :class:`~iwm.client.Refused` when the service refuses the request, with its reason, the
    base class when it was not reached after all retries.

    Args:
        base_url: where the service is.
        timeout: seconds for one attempt.
        retries: attempts after the first, on 503 and on a lost connection.
        token: bearer token, where the service wants one.
        transport: how requests travel; httpx's own by default.
    """

    def __init__(
        self,
        base_url: str = "http://localhost:8001",
        timeout: float = 30.0,
        *,
        retries: int = RETRIES,
        token: str | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        super().__init__(base_url, timeout, retries, token)
        self._http = httpx.AsyncClient(**self._settings, transport=transport)

    async def _send(self, call: Call[T]) -> T:
        self.total_requests += 1
        try:
            async for attempt in AsyncRetrying(**self._retry):
                with attempt:
                    response = await self._http.request(call.method, call.path, **call.request)
                    return answer(call, response)
        except FAILURES as error:
            raise self._failed(call.path, error) from None
        raise AssertionError("tenacity ends in an answer or an error")

    async def health(self) -> dict[str, Any]:
        """``GET /health``; on failure ``{"status": "error", "error": ...}``. Not retried."""
        self.total_requests += 1
        call = calls.health()
        try:
            return answer(call, await self._http.get(call.path))
        except FAILURES as error:
            return {"status": "error", "error": str(self._failed(call.path, error))}

    async def model(self) -> ModelCard:
        """What is served: name, version, vocabulary, sizes, gate report."""
        return await self._send(calls.model())

    async def encode_image(self, image: Pixels, return_patches: bool = False) -> EncodeResult:
        """Latents of uint8 RGB pixels ``[H, W, 3]``."""
        png = await asyncio.to_thread(png_of, image)
        return await self._send(calls.encode_image(png, return_patches))

    async def encode_image_path(self, path: str, return_patches: bool = False) -> EncodeResult:
        """Latents of an image file on the server, below its image root."""
        return await self._send(calls.encode_path(str(path), return_patches))

    async def encode_bytes(self, data: bytes, return_patches: bool = False) -> EncodeResult:
        """Latents of the bytes of a PNG or JPEG."""
        return await self._send(calls.encode_bytes(data, return_patches))

    async def encode_dual(self, image: Pixels, return_patches: bool = False) -> DualResult:
        """Latents of uint8 RGB pixels ``[H, W, 3]`` in both Phase 2 streams."""
        png = await asyncio.to_thread(png_of, image)
        return await self._send(calls.encode_dual(png, return_patches))

    async def predict_next(
        self,
        z_cls: Numbers,
        aug_params: Numbers | None = None,
        z_patches: Rows | None = None,
        *,
        action: str | None = None,
        history: Earlier | None = None,
    ) -> PredictResult:
        """The latent after an action, by numbers or by name. ``action`` is one of the
        model's vocabulary (:meth:`model`) or a common name of it; ``history`` holds at most as
        many frames as the model attends to.
        """
        return await self._send(calls.predict(z_cls, aug_params, z_patches, action, history))

    async def rollout(
        self,
        z_cls: Numbers,
        aug_seq: Rows | None = None,
        z_patches: Rows | None = None,
        *,
        actions: Sequence[str] | None = None,
        history: Earlier | None = None,
    ) -> RolloutResult:
        """The latents after each of k actions, by numbers or by name."""
        return await self._send(calls.rollout(z_cls, aug_seq, z_patches, actions, history))

    async def plan(
        self,
        z_cls: Numbers,
        goal_z_cls: Numbers | None = None,
        *,
        goal_image: Pixels | None = None,
        scoring: str | None = None,
        horizon: int = 8,
        candidates: int = 300,
        iterations: int = 10,
        seed: int = 0,
        actions: Sequence[str] | None = None,
        history: Earlier | None = None,
    ) -> PlanResult:
        """Search for the actions that lead to a goal, or that score best.

        Args:
            z_cls: ``[D]``, where to start.
            goal_z_cls: ``[D]``, the latent to get to; or
            goal_image: uint8 pixels ``[H, W, 3]`` of what should be seen; or
            scoring: ``certainty`` (ways that the model knows) or ``curiosity`` (ways that it
                does not).
            horizon: actions of a sequence.
            candidates: sequences that one iteration considers.
            iterations: of the search.
            seed: of the search.
            actions: names to choose among; the model's whole vocabulary if ``None``.
            history: earlier frames.
        """
        png = None if goal_image is None else await asyncio.to_thread(png_of, goal_image)
        return await self._send(
            calls.plan(
                z_cls,
                goal_z_cls,
                png,
                scoring=scoring,
                horizon=horizon,
                candidates=candidates,
                iterations=iterations,
                seed=seed,
                actions=actions,
                history=history,
            )
        )

    async def surprise(
        self,
        z_cls_prev: Numbers,
        z_cls: Numbers | None = None,
        *,
        image: Pixels | None = None,
        action: str | None = None,
        aug_params: Numbers | None = None,
        history: Earlier | None = None,
    ) -> SurpriseResult:
        """How surprising what came is, after an action by name or by numbers.

        Args:
            z_cls_prev: ``[D]``, before the action.
            z_cls: ``[D]``, after it; or
            image: uint8 pixels ``[H, W, 3]`` of what came.
            action: its name; or
            aug_params: its numbers.
            history: frames before ``z_cls_prev``.
        """
        png = None if image is None else await asyncio.to_thread(png_of, image)
        return await self._send(
            calls.surprise(
                z_cls_prev, z_cls, png, action=action, aug_params=aug_params, history=history
            )
        )

    async def reconstruct(self, image: Pixels) -> ReconstructResult:
        """Uint8 RGB pixels ``[H, W, 3]`` through the generative model's tokens and back."""
        png = await asyncio.to_thread(png_of, image)
        return await self._send(calls.reconstruct(png))

    async def dream(
        self,
        images: Sequence[Pixels],
        actions: Sequence[str],
        *,
        past_actions: Sequence[str | None] | None = None,
        seed: int = 0,
    ) -> DreamResult:
        """Imagine the frames that actions lead to.

        Args:
            images: uint8 pixels ``[H, W, 3]`` each, oldest first: at least one, at most the
                model's context (:meth:`model`, ``generative``).
            actions: names, one for each frame to imagine.
            past_actions: what led from each of ``images`` to the next; not known if ``None``.
            seed: of the dream.
        """
        pngs = await asyncio.to_thread(lambda: [png_of(image) for image in images])
        return await self._send(calls.dream(pngs, actions, past_actions, seed))

    async def imagine(
        self,
        state: Numbers,
        target: Numbers | None = None,
        *,
        actions: Sequence[str] | None = None,
        action_seq: Rows | None = None,
        rollouts: int = 10,
        horizon: int | None = None,
        seed: int = 0,
        every: bool = False,
    ) -> ImagineResult:
        """Imagine the futures of a state, and choose the best.

        Args:
            state: ``[S]``.
            target: ``[S]``, a state to get to, NaN in what does not matter; the model's own
                reward judges if ``None``.
            actions: one plan by name; or
            action_seq: by numbers ``[H, A]``; random plans without one.
            rollouts: futures.
            horizon: steps; as long as the plan, or the model's own, if ``None``.
            seed: of plans and draws.
            every: also answer the states of all futures.
        """
        return await self._send(
            calls.imagine(
                state,
                target=target,
                actions=actions,
                action_seq=action_seq,
                rollouts=rollouts,
                horizon=horizon,
                seed=seed,
                every=every,
            )
        )

    async def intention(
        self,
        agent: str,
        round: int,
        *,
        room: str | None = None,
        text: str | None = None,
        trajectory: Rows | None = None,
        goal: str | float | Sequence[float] = "",
        confidence: float = 1.0,
        outcome: float | None = None,
        agents: Sequence[str] = (),
        wait_ms: int = 0,
    ) -> IntentionResult:
        """Say what an agent means to do in a round, and hear the others.

        Args:
            agent: who.
            round: of the agents' common clock.
            room: where others read it; nobody does if ``None``.
            text: an intention, compressed already; or
            trajectory: ``[H, S]`` of a plan, to be compressed by the service's codec.
            goal: what for: a name, a number or a list of numbers.
            confidence: in [0, 1].
            outcome: the return expected.
            agents: whose intentions of this round are awaited,
            wait_ms: so long at most.
        """
        return await self._send(
            calls.intention(
                agent,
                round,
                room=room,
                text=text,
                trajectory=trajectory,
                goal=goal,
                confidence=confidence,
                outcome=outcome,
                agents=list(agents),
                wait_ms=wait_ms,
            )
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

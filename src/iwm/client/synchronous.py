"""The same calls for code without an event loop."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx
from tenacity import Retrying

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


class SyncIWMClient(Connection):
    """The twin of :class:`~iwm.client.IWMClient`, whose methods say what they take and raise."""

    def __init__(
        self,
        base_url: str = "http://localhost:8001",
        timeout: float = 30.0,
        *,
        retries: int = RETRIES,
        token: str | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        super().__init__(base_url, timeout, retries, token)
        self._http = httpx.Client(**self._settings, transport=transport)

    def _send(self, call: Call[T]) -> T:
        self.total_requests += 1
        try:
            for attempt in Retrying(**self._retry):
                with attempt:
                    response = self._http.request(call.method, call.path, **call.request)
                    return answer(call, response)
        except FAILURES as error:
            raise self._failed(call.path, error) from None
        raise AssertionError("tenacity ends in an answer or an error")

    def health(self) -> dict[str, Any]:
        """``GET /health``; on failure ``{"status": "error", "error": ...}``. Not retried."""
        self.total_requests += 1
        call = calls.health()
        try:
            return answer(call, self._http.get(call.path))
        except FAILURES as error:
            return {"status": "error", "error": str(self._failed(call.path, error))}

    def model(self) -> ModelCard:
        """What is served."""
        return self._send(calls.model())

    def encode_image(self, image: Pixels, return_patches: bool = False) -> EncodeResult:
        """Latents of uint8 RGB pixels ``[H, W, 3]``."""
        return self._send(calls.encode_image(png_of(image), return_patches))

    def encode_image_path(self, path: str, return_patches: bool = False) -> EncodeResult:
        """Latents of an image file on the server, below its image root."""
        return self._send(calls.encode_path(str(path), return_patches))

    def encode_bytes(self, data: bytes, return_patches: bool = False) -> EncodeResult:
        """Latents of the bytes of a PNG or JPEG."""
        return self._send(calls.encode_bytes(data, return_patches))

    def encode_dual(self, image: Pixels, return_patches: bool = False) -> DualResult:
        """Latents of uint8 RGB pixels ``[H, W, 3]`` in both Phase 2 streams."""
        return self._send(calls.encode_dual(png_of(image), return_patches))

    def predict_next(
        self,
        z_cls: Numbers,
        aug_params: Numbers | None = None,
        z_patches: Rows | None = None,
        *,
        action: str | None = None,
        history: Earlier | None = None,
    ) -> PredictResult:
        """The latent after an action, by numbers or by name."""
        return self._send(calls.predict(z_cls, aug_params, z_patches, action, history))

    def rollout(
        self,
        z_cls: Numbers,
        aug_seq: Rows | None = None,
        z_patches: Rows | None = None,
        *,
        actions: Sequence[str] | None = None,
        history: Earlier | None = None,
    ) -> RolloutResult:
        """The latents after each of k actions, by numbers or by name."""
        return self._send(calls.rollout(z_cls, aug_seq, z_patches, actions, history))

    def plan(
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
        """Search for the actions that lead to a goal, or that score best."""
        return self._send(
            calls.plan(
                z_cls,
                goal_z_cls,
                None if goal_image is None else png_of(goal_image),
                scoring=scoring,
                horizon=horizon,
                candidates=candidates,
                iterations=iterations,
                seed=seed,
                actions=actions,
                history=history,
            )
        )

    def surprise(
        self,
        z_cls_prev: Numbers,
        z_cls: Numbers | None = None,
        *,
        image: Pixels | None = None,
        action: str | None = None,
        aug_params: Numbers | None = None,
        history: Earlier | None = None,
    ) -> SurpriseResult:
        """How surprising what came is, after an action by name or by numbers."""
        png = None if image is None else png_of(image)
        return self._send(
            calls.surprise(
                z_cls_prev, z_cls, png, action=action, aug_params=aug_params, history=history
            )
        )

    def reconstruct(self, image: Pixels) -> ReconstructResult:
        """Uint8 RGB pixels ``[H, W, 3]`` through the generative model's tokens and back."""
        return self._send(calls.reconstruct(png_of(image)))

    def dream(
        self,
        images: Sequence[Pixels],
        actions: Sequence[str],
        *,
        past_actions: Sequence[str | None] | None = None,
        seed: int = 0,
    ) -> DreamResult:
        """Imagine the frames that actions lead to."""
        pngs = [png_of(image) for image in images]
        return self._send(calls.dream(pngs, actions, past_actions, seed))

    def imagine(
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
        """The futures of a state, and the best of them."""
        return self._send(
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

    def intention(
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
        """Say what an agent means to do in a round, and hear the others."""
        return self._send(
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

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

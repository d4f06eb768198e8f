"""Clients of the inference service: :class:`IWMClient` (async) and :class:`SyncIWMClient`.

Every call is a pure function of its request, so a lost connection or a 503 is retried with
back-off; an answer that says the request is wrong is not.
"""

from __future__ import annotations

import asyncio
import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import httpx
import numpy as np
import numpy.typing as npt
import orjson
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    Retrying,
    retry_if_exception_type,
    stop_after_attempt,
    wait_random_exponential,
)

from iwm.errors import ServiceError

Floats = npt.NDArray[np.float32]
Numbers = Sequence[float] | npt.NDArray[Any]
Rows = Sequence[Numbers] | npt.NDArray[Any]

MAX_WAIT_S = 5.0


@dataclass(frozen=True)
class EncodeResult:
    """``z_cls [D]``, ``z_patches [N, D]`` where asked for, Unix ``timestamp``."""

    z_cls: Floats
    z_patches: Floats | None
    timestamp: float
    latent_dim: int
    model_variant: str


@dataclass(frozen=True)
class PredictResult:
    """``z_cls_pred [D]``; ``mrr`` and ``uncertainty`` are NaN without a calibration."""

    z_cls_pred: Floats
    z_patches_pred: Floats | None
    mrr: float
    uncertainty: float
    timestamp: float


@dataclass(frozen=True)
class RolloutResult:
    """``z_cls_seq [K, D]``, ``z_patches_seq [K, N, D]``; the others ``[K]``."""

    z_cls_seq: Floats
    z_patches_seq: Floats | None
    mrr_seq: Floats
    uncertainty_seq: Floats
    timestamp: float


@dataclass(frozen=True)
class Earlier:
    """Earlier frames, oldest first, and what was done after each.

    ``z_cls [h][D]``; ``actions``: h names, ``None`` where not known; or ``aug_seq [h][..]``.
    """

    z_cls: Rows
    actions: Sequence[str | None] | None = None
    aug_seq: Rows | None = None


class _Busy(Exception):
    """A 503; ``after`` is the server's ``Retry-After`` in seconds, if it gave one."""

    def __init__(self, detail: str, after: float | None) -> None:
        super().__init__(detail)
        self.after = after


_LOST = (httpx.ConnectError, httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError)


def _wait(state: RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    if isinstance(error, _Busy) and error.after is not None:
        return min(error.after, MAX_WAIT_S)
    return wait_random_exponential(multiplier=0.1, max=MAX_WAIT_S)(state)


def png_of(image: npt.NDArray[np.uint8]) -> bytes:
    """PNG (lossless, fast setting) of uint8 pixels ``[H, W]``, ``[H, W, 3]`` or ``[H, W, 4]``."""
    from PIL import Image

    pixels = np.asarray(image)
    if pixels.dtype != np.uint8:
        raise ValueError(f"image: expected uint8 pixels, given {pixels.dtype}")
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _array(value: Any) -> Floats | None:
    return None if value is None else np.asarray(value, np.float32)


def _plain(value: Any) -> Any:
    """Arrays and rows of arrays as what JSON can hold; ragged rows stay lists."""
    if isinstance(value, np.ndarray):
        return np.ascontiguousarray(value)
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def _encoded(answer: Any) -> EncodeResult:
    return EncodeResult(
        np.asarray(answer["z_cls"], np.float32),
        _array(answer["z_patches"]),
        float(answer["timestamp"]),
        int(answer["latent_dim"]),
        str(answer["model_variant"]),
    )


def _number(value: float | None) -> float:
    return float("nan") if value is None else float(value)


def _predicted(answer: Any) -> PredictResult:
    return PredictResult(
        np.asarray(answer["z_cls_pred"], np.float32),
        _array(answer["z_patches_pred"]),
        _number(answer["mrr"]),
        _number(answer["uncertainty"]),
        float(answer["timestamp"]),
    )


def _rolled_out(answer: Any) -> RolloutResult:
    return RolloutResult(
        np.asarray(answer["z_cls_seq"], np.float32),
        _array(answer["z_patches_seq"]),
        np.array([_number(value) for value in answer["mrr_seq"]], np.float32),
        np.array([_number(value) for value in answer["uncertainty_seq"]], np.float32),
        float(answer["timestamp"]),
    )


def _read(response: httpx.Response) -> Any:
    """The answer's JSON.

    Raises:
        _Busy: 503.
        ServiceError: any other refusal, with the service's reason.
    """
    if response.status_code == 200:
        return orjson.loads(response.content)
    try:
        detail = str(orjson.loads(response.content)["detail"])
    except (orjson.JSONDecodeError, KeyError, TypeError):
        detail = response.text[:200]
    line = f"{response.url.path}: {response.status_code}: {detail}"
    if response.status_code == 503:
        after = response.headers.get("retry-after", "")
        raise _Busy(line, float(after) if after.isdigit() else None)
    raise ServiceError(line)


class _Client:
    """Addresses, counters and requests; what is sent and how it is read."""

    def __init__(
        self,
        base_url: str = "http://localhost:8001",
        timeout: float = 30.0,
        *,
        retries: int = 4,
        token: str | None = None,
    ) -> None:
        self.base_url = base_url.rstrip("/")
        self.total_requests = 0
        self.total_errors = 0
        self._retry: dict[str, Any] = {
            "retry": retry_if_exception_type((_Busy, *_LOST)),
            "stop": stop_after_attempt(1 + retries),
            "wait": _wait,
            "reraise": True,
        }
        self._settings: dict[str, Any] = {
            "base_url": self.base_url,
            "timeout": timeout,
            "headers": {"Authorization": f"Bearer {token}"} if token else {},
        }

    def _failed(self, path: str, error: Exception) -> ServiceError:
        self.total_errors += 1
        if isinstance(error, ServiceError):
            return error
        if isinstance(error, _Busy):
            return ServiceError(str(error))
        return ServiceError(f"{self.base_url}{path}: {str(error) or type(error).__name__}")

    @staticmethod
    def _image(png: bytes, return_patches: bool) -> dict[str, Any]:
        return {
            "content": png,
            "headers": {"Content-Type": "image/png"},
            "params": {"return_patches": "true" if return_patches else "false"},
        }

    @staticmethod
    def _json(**fields: Any) -> dict[str, Any]:
        past = fields.get("history")
        if past is not None:
            fields["history"] = {name: _plain(value) for name, value in vars(past).items()}
        # What is newer than the older service is sent only where it is used.
        given = {
            name: _plain(value)
            for name, value in fields.items()
            if value is not None or name not in ("action", "actions", "history")
        }
        body = orjson.dumps(given, option=orjson.OPT_SERIALIZE_NUMPY)
        return {"content": body, "headers": {"Content-Type": "application/json"}}


class IWMClient(_Client):
    """Asynchronous client.

    Args:
        base_url: where the service is.
        timeout: seconds for one attempt.
        retries: attempts after the first, on 503 and on a lost connection.
        token: bearer token, where the service wants one.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._http = httpx.AsyncClient(**self._settings)

    async def _post(self, path: str, request: dict[str, Any]) -> Any:
        self.total_requests += 1
        try:
            async for attempt in AsyncRetrying(**self._retry):
                with attempt:
                    return _read(await self._http.post(path, **request))
        except (ServiceError, _Busy, httpx.HTTPError) as error:
            raise self._failed(path, error) from None
        raise AssertionError("tenacity ends in an answer or an error")

    async def health(self) -> dict[str, Any]:
        """``GET /health``; on failure ``{"status": "error", "error": ...}``. Not retried."""
        self.total_requests += 1
        try:
            return dict(_read(await self._http.get("/health")))
        except (ServiceError, _Busy, httpx.HTTPError, orjson.JSONDecodeError) as error:
            return {"status": "error", "error": str(self._failed("/health", error))}

    async def encode_image(
        self, image: npt.NDArray[np.uint8], return_patches: bool = False
    ) -> EncodeResult:
        """Latents of uint8 RGB pixels ``[H, W, 3]``.

        Raises:
            ServiceError: refused, or not reached after all retries.
        """
        png = await asyncio.to_thread(png_of, image)
        return _encoded(await self._post("/encode", self._image(png, return_patches)))

    async def encode_image_path(self, path: str, return_patches: bool = False) -> EncodeResult:
        """Latents of an image file on the server, below its image root."""
        request = self._json(image_path=str(path), return_patches=return_patches)
        return _encoded(await self._post("/encode", request))

    async def encode_bytes(self, data: bytes, return_patches: bool = False) -> EncodeResult:
        """Latents of the bytes of a PNG or JPEG."""
        request = self._json(
            image_b64=base64.b64encode(data).decode(), return_patches=return_patches
        )
        return _encoded(await self._post("/encode", request))

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
        model's vocabulary (``GET /model``) or a common name of it; ``history`` holds at most as
        many frames as the model attends to.
        """
        request = self._json(
            z_cls=z_cls, aug_params=aug_params, z_patches=z_patches, action=action, history=history
        )
        return _predicted(await self._post("/predict", request))

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
        request = self._json(
            z_cls=z_cls, aug_seq=aug_seq, z_patches=z_patches, actions=actions, history=history
        )
        return _rolled_out(await self._post("/rollout", request))

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


class SyncIWMClient(_Client):
    """The same calls for code without an event loop; see :class:`IWMClient`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._http = httpx.Client(**self._settings)

    def _post(self, path: str, request: dict[str, Any]) -> Any:
        self.total_requests += 1
        try:
            for attempt in Retrying(**self._retry):
                with attempt:
                    return _read(self._http.post(path, **request))
        except (ServiceError, _Busy, httpx.HTTPError) as error:
            raise self._failed(path, error) from None
        raise AssertionError("tenacity ends in an answer or an error")

    def health(self) -> dict[str, Any]:
        """``GET /health``; on failure ``{"status": "error", "error": ...}``. Not retried."""
        self.total_requests += 1
        try:
            return dict(_read(self._http.get("/health")))
        except (ServiceError, _Busy, httpx.HTTPError, orjson.JSONDecodeError) as error:
            return {"status": "error", "error": str(self._failed("/health", error))}

    def encode_image(
        self, image: npt.NDArray[np.uint8], return_patches: bool = False
    ) -> EncodeResult:
        """Latents of uint8 RGB pixels ``[H, W, 3]``."""
        return _encoded(self._post("/encode", self._image(png_of(image), return_patches)))

    def encode_image_path(self, path: str, return_patches: bool = False) -> EncodeResult:
        """Latents of an image file on the server, below its image root."""
        request = self._json(image_path=str(path), return_patches=return_patches)
        return _encoded(self._post("/encode", request))

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
        request = self._json(
            z_cls=z_cls, aug_params=aug_params, z_patches=z_patches, action=action, history=history
        )
        return _predicted(self._post("/predict", request))

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
        request = self._json(
            z_cls=z_cls, aug_seq=aug_seq, z_patches=z_patches, actions=actions, history=history
        )
        return _rolled_out(self._post("/rollout", request))

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

"""The service's calls as values: what is sent, and how the answer is read."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt
import orjson

from iwm.client import results

Numbers = Sequence[float] | npt.NDArray[Any]
Rows = Sequence[Numbers] | npt.NDArray[Any]
Pixels = npt.NDArray[np.uint8]
T = TypeVar("T")

# Optional keys that the older service was always sent.
_OLDER = ("z_patches", "aug_params", "aug_seq")


@dataclass(frozen=True)
class Earlier:
    """Earlier frames, oldest first, and what was done after each.

    ``z_cls [h][D]``; ``actions``: h names, ``None`` where not known; or ``aug_seq [h][..]``.
    """

    z_cls: Rows
    actions: Sequence[str | None] | None = None
    aug_seq: Rows | None = None


@dataclass(frozen=True)
class Call(Generic[T]):
    """One request: ``request`` holds the arguments of httpx, ``read`` understands the answer."""

    method: str
    path: str
    request: Mapping[str, Any]
    read: Callable[[Any], T]


def png_of(image: Pixels) -> bytes:
    """PNG (lossless, fast setting) of uint8 pixels ``[H, W]``, ``[H, W, 3]`` or ``[H, W, 4]``.

    Raises:
        ValueError: other numbers than bytes.
    """
    from PIL import Image

    pixels = np.asarray(image)
    if pixels.dtype != np.uint8:
        raise ValueError(f"image: expected uint8 pixels, given {pixels.dtype}")
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _plain(value: Any) -> Any:
    """Arrays and rows of arrays as what JSON can hold; ragged rows stay lists."""
    if isinstance(value, np.ndarray):
        return np.ascontiguousarray(value)
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, Earlier):
        return {name: _plain(item) for name, item in vars(value).items()}
    return value


def _json(**fields: Any) -> dict[str, Any]:
    # What is newer than the older service is sent only where it is used.
    given = {
        name: _plain(value) for name, value in fields.items() if value is not None or name in _OLDER
    }
    body = orjson.dumps(given, option=orjson.OPT_SERIALIZE_NUMPY)
    return {"content": body, "headers": {"Content-Type": "application/json"}}


def _image(png: bytes, return_patches: bool) -> dict[str, Any]:
    return {
        "content": png,
        "headers": {"Content-Type": "image/png"},
        "params": {"return_patches": "true" if return_patches else "false"},
    }


def health() -> Call[dict[str, Any]]:
    """``GET /health``."""
    return Call("GET", "/health", {}, dict)


def model() -> Call[results.ModelCard]:
    """``GET /model``."""
    return Call("GET", "/model", {}, results.read_card)


def encode_image(png: bytes, return_patches: bool) -> Call[results.EncodeResult]:
    """``POST /encode`` with the bytes of a PNG as its body."""
    return Call("POST", "/encode", _image(png, return_patches), results.read_encoded)


def encode_path(path: str, return_patches: bool) -> Call[results.EncodeResult]:
    """``POST /encode`` of a file on the server."""
    body = _json(image_path=path, return_patches=return_patches)
    return Call("POST", "/encode", body, results.read_encoded)


def encode_bytes(data: bytes, return_patches: bool) -> Call[results.EncodeResult]:
    """``POST /encode`` of a PNG's or JPEG's bytes, as base64 in JSON."""
    body = _json(image_b64=data, return_patches=return_patches)
    return Call("POST", "/encode", body, results.read_encoded)


def encode_dual(png: bytes, return_patches: bool) -> Call[results.DualResult]:
    """``POST /encode_dual``."""
    return Call("POST", "/encode_dual", _image(png, return_patches), results.read_dual)


def predict(
    z_cls: Numbers,
    aug_params: Numbers | None,
    z_patches: Rows | None,
    action: str | None,
    history: Earlier | None,
) -> Call[results.PredictResult]:
    """``POST /predict``."""
    body = _json(
        z_cls=z_cls, aug_params=aug_params, z_patches=z_patches, action=action, history=history
    )
    return Call("POST", "/predict", body, results.read_predicted)


def rollout(
    z_cls: Numbers,
    aug_seq: Rows | None,
    z_patches: Rows | None,
    actions: Sequence[str] | None,
    history: Earlier | None,
) -> Call[results.RolloutResult]:
    """``POST /rollout``."""
    body = _json(
        z_cls=z_cls, aug_seq=aug_seq, z_patches=z_patches, actions=actions, history=history
    )
    return Call("POST", "/rollout", body, results.read_rollout)


def plan(
    z_cls: Numbers,
    goal_z_cls: Numbers | None,
    goal_png: bytes | None,
    **search: Any,
) -> Call[results.PlanResult]:
    """``POST /plan``; ``search`` holds the other keys of the request."""
    body = _json(z_cls=z_cls, goal_z_cls=goal_z_cls, goal_image_b64=goal_png, **search)
    return Call("POST", "/plan", body, results.read_plan)


def surprise(
    z_cls_prev: Numbers,
    z_cls: Numbers | None,
    png: bytes | None,
    **action: Any,
) -> Call[results.SurpriseResult]:
    """``POST /surprise``; ``action`` holds ``action``, ``aug_params`` and ``history``."""
    body = _json(z_cls_prev=z_cls_prev, z_cls=z_cls, image_b64=png, **action)
    return Call("POST", "/surprise", body, results.read_surprise)


def reconstruct(png: bytes) -> Call[results.ReconstructResult]:
    """``POST /reconstruct`` with the bytes of a PNG as its body."""
    request = {"content": png, "headers": {"Content-Type": "image/png"}}
    return Call("POST", "/reconstruct", request, results.read_reconstructed)


def dream(
    pngs: Sequence[bytes],
    actions: Sequence[str],
    past_actions: Sequence[str | None] | None,
    seed: int,
) -> Call[results.DreamResult]:
    """``POST /dream``."""
    body = _json(images_b64=list(pngs), actions=list(actions), past_actions=past_actions, seed=seed)
    return Call("POST", "/dream", body, results.read_dream)


def imagine(state: Numbers, **wanted: Any) -> Call[results.ImagineResult]:
    """``POST /imagine``; ``wanted`` holds the other keys of the request."""
    target = wanted.pop("target", None)
    if target is not None:  # JSON has no NaN: what does not matter is null
        numbers = np.asarray(target, np.float64)
        wanted["target"] = [None if np.isnan(number) else float(number) for number in numbers]
    return Call("POST", "/imagine", _json(state=state, **wanted), results.read_imagined)


def intention(agent: str, round: int, **said: Any) -> Call[results.IntentionResult]:
    """``POST /intention``; ``said`` holds the other keys of the request."""
    body = _json(agent=agent, round=round, **said)
    return Call("POST", "/intention", body, results.read_intention)

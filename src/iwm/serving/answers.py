"""Answers of the service: JSON with every key, or npy where the client asks for it."""

from __future__ import annotations

import io
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from starlette.responses import Response

from iwm.serving import imagery, wire
from iwm.serving.embodied import facts as embodied_facts
from iwm.serving.wire import Floats, RequestError

if TYPE_CHECKING:
    from iwm.serving.engine import Engine
    from iwm.serving.models import Models
    from iwm.serving.plan import Planned
    from iwm.serving.surprise import Surprises

NPY = "application/x-npy"
OCTETS = "application/octet-stream"


def json_response(
    value: Any, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """Serialised by orjson; arrays as lists."""
    return _Json(wire.dumps(value), status, headers or {})


class _Json(Response):
    """Its head is put together at once; piece by piece it costs what a layer of a model does."""

    media_type = "application/json"

    def __init__(self, body: bytes, status: int, headers: Mapping[str, str]) -> None:
        self.status_code, self.body, self.background = status, body, None
        self.raw_headers = [
            *(
                (name.lower().encode("latin-1"), headers[name].encode("latin-1"))
                for name in headers
            ),
            (b"content-length", b"%d" % len(body)),
            (b"content-type", b"application/json"),
        ]


def flag(text: str | None, field: str) -> bool:
    """A query parameter that is true or false.

    Raises:
        RequestError: 422.
    """
    if text is None or text.lower() in ("false", "0"):
        return False
    if text.lower() in ("true", "1"):
        return True
    raise RequestError(422, f"{field}: expected true or false, given {text[:40]!r}")


def encoded(accept: str, z_cls: Floats, z_patches: Floats | None, variant: str) -> Response:
    """The answer of ``/encode``.

    With ``Accept: application/x-npy`` or ``application/octet-stream``: one npy array,
    float32 ``[D]``, or ``[1 + N, D]`` with patches (row 0 is the CLS latent).
    """
    wanted = next((kind for kind in (NPY, OCTETS) if kind in accept), None)
    if wanted:
        array = z_cls if z_patches is None else np.concatenate([z_cls[None], z_patches])
        buffer = io.BytesIO()
        np.save(buffer, np.ascontiguousarray(array), allow_pickle=False)
        headers = {"X-IWM-Timestamp": repr(time.time()), "X-IWM-Model-Variant": variant}
        return Response(buffer.getvalue(), media_type=wanted, headers=headers)
    return json_response(
        {
            "z_cls": z_cls,
            "z_patches": z_patches,
            "timestamp": time.time(),
            "latent_dim": len(z_cls),
            "model_variant": variant,
        }
    )


def predicted(
    z_cls: Floats, z_patches: Floats | None, mrr: Floats | None, uncertainty: Floats | None
) -> Response:
    """The answer of ``/predict``, from a rollout of one step."""
    return json_response(
        {
            "z_cls_pred": np.ascontiguousarray(z_cls[0]),
            "z_patches_pred": None if z_patches is None else np.ascontiguousarray(z_patches[0]),
            "mrr": None if mrr is None else float(mrr[0]),
            "uncertainty": None if uncertainty is None else float(uncertainty[0]),
            "timestamp": time.time(),
        }
    )


def rolled_out(
    z_cls: Floats, z_patches: Floats | None, mrr: Floats | None, uncertainty: Floats | None
) -> Response:
    """The answer of ``/rollout``; arrays are ``[K, ...]``."""
    empty = [None] * len(z_cls)
    return json_response(
        {
            "z_cls_seq": np.ascontiguousarray(z_cls),
            "z_patches_seq": None if z_patches is None else np.ascontiguousarray(z_patches),
            "mrr_seq": empty if mrr is None else np.ascontiguousarray(mrr),
            "uncertainty_seq": empty if uncertainty is None else np.ascontiguousarray(uncertainty),
            "timestamp": time.time(),
        }
    )


def encoded_dual(
    semantic: tuple[Floats, Floats | None],
    equivariant: tuple[Floats, Floats | None],
    variants: tuple[str, ...],
) -> Response:
    """The answer of ``/encode_dual``: ``z_cls`` and patches of each stream."""
    return json_response(
        {
            "semantic": semantic[0],
            "equivariant": equivariant[0],
            "semantic_patches": semantic[1],
            "equivariant_patches": equivariant[1],
            "semantic_variant": variants[0],
            "equivariant_variant": variants[1],
            "timestamp": time.time(),
        }
    )


def planned(plan: Planned, words: Mapping[str, str]) -> Response:
    """The answer of ``/plan``.

    Args:
        plan: in the vocabulary's words.
        words: its word -> the client's own.
    """

    def said(names: tuple[str, ...]) -> list[str]:
        return [words[name] for name in names]

    others = [{"actions": said(names), "score": score} for names, score in plan.runners_up]
    uncertainty = plan.uncertainty
    return json_response(
        {
            "actions": said(plan.actions),
            "score": plan.score,
            "runners_up": others,
            "z_cls_seq": np.ascontiguousarray(plan.z_cls),
            "uncertainty_seq": [None] * len(plan.actions)
            if uncertainty is None
            else np.ascontiguousarray(uncertainty),
            "milliseconds": plan.milliseconds,
            "timestamp": time.time(),
        }
    )


def surprised(found: Surprises) -> Response:
    """The answer of ``/surprise``."""
    value = float(found.value[0])
    return json_response(
        {
            "surprise": value,
            "threshold": found.threshold,
            "surprising": found.threshold is not None and value > found.threshold,
            "calibrated": found.threshold is not None,
            "measure": found.measure,
            "timestamp": time.time(),
        }
    )


def model_card(models: Models) -> dict[str, Any]:
    """``GET /model``: every key always there, ``null`` where the folder does not say."""
    engine = models.main
    card, calibration = engine.card, engine.calibration
    return {
        "name": card.get("model"),
        "version": card.get("version"),
        "alias": card.get("alias"),
        "model_variant": models.variant,
        "data_revision": card.get("data_revision"),
        "commit": card.get("git_commit"),
        "profile": card.get("profile"),
        "weights_sha256": card.get("weights_sha256"),
        "gate": card.get("gate"),
        "vocabulary": list(engine.vocabulary) or None,
        "recordings": card.get("vocabulary"),
        "latent_dim": engine.latent_dim,
        "patches": engine.patches,
        "image_size": list(engine.preprocess.size),
        "aug_dim": engine.aug_dim,
        "augmentation_dim": engine.augmentation_dim,
        "history": engine.history,
        "latent_scale": calibration.cls_only.surprise_scale if calibration else None,
        "surprise_threshold": calibration.surprise_threshold if calibration else None,
        "streams": list(models.streams),
        "stream_models": {name: _stream(engine) for name, engine in models.streams.items()},
        "generative": imagery.facts(models.dreamer),
        "embodied": embodied_facts(models.imaginer),
        "device": str(engine.device),
        "precision": engine.numbers.precision,
    }


def _stream(engine: Engine) -> dict[str, Any]:
    card = engine.card
    return {
        "name": card.get("model"),
        "version": card.get("version"),
        "alias": card.get("alias"),
        "weights_sha256": card.get("weights_sha256"),
        "latent_dim": engine.latent_dim,
        "image_size": list(engine.preprocess.size),
    }

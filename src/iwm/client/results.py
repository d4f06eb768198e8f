"""What the service's answers become: frozen dataclasses that hold numpy arrays.

Every ``read_*`` function takes an answer's JSON and raises ``KeyError``, ``TypeError`` or
``ValueError`` where it is not what the service promises. Figures that a model carries no
calibration for are NaN.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class EncodeResult:
    """``z_cls [D]``, ``z_patches [N, D]`` where asked for, Unix ``timestamp``."""

    z_cls: Floats
    z_patches: Floats | None
    timestamp: float
    latent_dim: int
    model_variant: str


@dataclass(frozen=True)
class DualResult:
    """One image's latents in both Phase 2 streams, each ``[D]`` of its own model.

    ``semantic`` keeps what a frame means, ``equivariant`` also its light and framing; their
    patches ``[N, D]`` where asked for.
    """

    semantic: Floats
    equivariant: Floats
    semantic_patches: Floats | None
    equivariant_patches: Floats | None
    semantic_variant: str
    equivariant_variant: str
    timestamp: float


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
class Candidate:
    """A sequence of actions by name, and its score; higher is better."""

    actions: tuple[str, ...]
    score: float


@dataclass(frozen=True)
class PlanResult:
    """The best sequence of K actions found, where it is thought to lead, and what came close.

    ``z_cls_seq [K, D]``, ``uncertainty_seq [K]``; ``milliseconds``: spent by the service.
    """

    actions: tuple[str, ...]
    score: float
    runners_up: tuple[Candidate, ...]
    z_cls_seq: Floats
    uncertainty_seq: Floats
    milliseconds: float
    timestamp: float


@dataclass(frozen=True)
class SurpriseResult:
    """How far what came lies from what was predicted.

    ``calibrated``: on the scale on which the 95th percentile of ordinary play is 2.0; otherwise
    it is the plain distance, and ``threshold`` is NaN. ``surprising``: above the threshold.
    ``measure``: ``combined`` or ``distance``.
    """

    surprise: float
    threshold: float
    surprising: bool
    calibrated: bool
    measure: str
    timestamp: float


@dataclass(frozen=True)
class ReconstructResult:
    """What came back through the tokens, uint8 ``[H, W, 3]`` at the model's size.

    ``psnr`` in dB and ``ssim`` are against the image at that size; ``tokens``: rows, columns;
    ``codes``: words that each of them is one of; ``compression_ratio``: 24 bits a pixel over
    ``bits``.
    """

    image: Pixels
    psnr: float
    ssim: float
    tokens: tuple[int, int]
    codes: int
    bits: float
    compression_ratio: float
    timestamp: float


@dataclass(frozen=True)
class DreamResult:
    """The frames imagined, uint8 ``[K, H, W, 3]``, one for each of the K actions.

    ``milliseconds``: spent by the service.
    """

    frames: Pixels
    actions: tuple[str, ...]
    milliseconds: float
    timestamp: float


@dataclass(frozen=True)
class ImagineResult:
    """The best of the imagined futures: ``states [H, S]``, ``actions [H, A]``, their names where
    they have any, expected RMSE of the states in standard deviations ``uncertainty [H]``.

    ``best``: its place among ``returns [n]``; ``all_states [n, H, S]`` where asked for.
    """

    best: int
    returns: Floats
    confidence: float
    states: Floats
    actions: Floats
    action_names: tuple[str, ...] | None
    uncertainty: Floats
    all_states: Floats | None
    milliseconds: float
    timestamp: float


@dataclass(frozen=True)
class Heard:
    """Another agent's intention; ``plan [H, S]`` where the service compressed it."""

    agent: str
    text: str
    goal: str | float | tuple[float, ...]
    confidence: float | None
    outcome: float | None
    plan: Floats | None


@dataclass(frozen=True)
class IntentionResult:
    """An intention of ``size`` bytes, and what the others in the room mean to do this round.

    ``stale``: agents whose newest intention is of another round; ``missing``: awaited in vain.
    """

    intention: str
    size: int
    others: tuple[Heard, ...]
    stale: tuple[str, ...]
    missing: tuple[str, ...]
    timestamp: float


@dataclass(frozen=True)
class ModelCard:
    """What the service says of its model; ``None``, empty or NaN where it does not say.

    ``latent_scale`` x distance of two latents = surprise; ``history``: earlier frames that a
    prediction can attend to; ``image_size``: (height, width); ``card``: the whole answer.
    """

    name: str | None
    version: str | None
    alias: str | None
    data_revision: str | None
    commit: str | None
    model_variant: str
    gate: Mapping[str, Any] | None
    vocabulary: tuple[str, ...]
    latent_dim: int
    latent_scale: float
    history: int
    image_size: tuple[int, ...]
    streams: tuple[str, ...]
    generative: Mapping[str, Any] | None
    """Vocabulary, context and image size behind :meth:`dream`."""
    card: Mapping[str, Any] = field(repr=False)


def _floats(value: Any) -> Floats:
    return np.asarray(value, np.float32)


def _maybe(value: Any) -> Floats | None:
    return None if value is None else _floats(value)


def _number(value: float | None) -> float:
    return float("nan") if value is None else float(value)


def _numbers(values: Sequence[float | None]) -> Floats:
    return np.array([_number(value) for value in values], np.float32)


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _names(value: Any) -> tuple[str, ...]:
    return tuple(str(name) for name in value or ())


def read_encoded(answer: Any) -> EncodeResult:
    """The answer of ``/encode``."""
    return EncodeResult(
        _floats(answer["z_cls"]),
        _maybe(answer["z_patches"]),
        float(answer["timestamp"]),
        int(answer["latent_dim"]),
        str(answer["model_variant"]),
    )


def read_dual(answer: Any) -> DualResult:
    """The answer of ``/encode_dual``."""
    return DualResult(
        _floats(answer["semantic"]),
        _floats(answer["equivariant"]),
        _maybe(answer["semantic_patches"]),
        _maybe(answer["equivariant_patches"]),
        str(answer["semantic_variant"]),
        str(answer["equivariant_variant"]),
        float(answer["timestamp"]),
    )


def read_predicted(answer: Any) -> PredictResult:
    """The answer of ``/predict``."""
    return PredictResult(
        _floats(answer["z_cls_pred"]),
        _maybe(answer["z_patches_pred"]),
        _number(answer["mrr"]),
        _number(answer["uncertainty"]),
        float(answer["timestamp"]),
    )


def read_rollout(answer: Any) -> RolloutResult:
    """The answer of ``/rollout``."""
    return RolloutResult(
        _floats(answer["z_cls_seq"]),
        _maybe(answer["z_patches_seq"]),
        _numbers(answer["mrr_seq"]),
        _numbers(answer["uncertainty_seq"]),
        float(answer["timestamp"]),
    )


def read_plan(answer: Any) -> PlanResult:
    """The answer of ``/plan``."""
    return PlanResult(
        _names(answer["actions"]),
        float(answer["score"]),
        tuple(
            Candidate(_names(other["actions"]), float(other["score"]))
            for other in answer["runners_up"]
        ),
        _floats(answer["z_cls_seq"]),
        _numbers(answer["uncertainty_seq"]),
        float(answer["milliseconds"]),
        float(answer["timestamp"]),
    )


def read_surprise(answer: Any) -> SurpriseResult:
    """The answer of ``/surprise``."""
    return SurpriseResult(
        float(answer["surprise"]),
        _number(answer["threshold"]),
        bool(answer["surprising"]),
        bool(answer["calibrated"]),
        str(answer["measure"]),
        float(answer["timestamp"]),
    )


def _pixels(text: str) -> Pixels:
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))).convert("RGB"))


def read_reconstructed(answer: Any) -> ReconstructResult:
    """The answer of ``/reconstruct``."""
    tokens = answer["tokens"]
    return ReconstructResult(
        _pixels(answer["image_b64"]),
        float(answer["psnr"]),
        float(answer["ssim"]),
        (int(tokens["rows"]), int(tokens["columns"])),
        int(tokens["codes"]),
        float(answer["bits"]),
        float(answer["compression_ratio"]),
        float(answer["timestamp"]),
    )


def read_dream(answer: Any) -> DreamResult:
    """The answer of ``/dream`` in PNGs."""
    return DreamResult(
        np.stack([_pixels(text) for text in answer["frames_b64"]]),
        _names(answer["actions"]),
        float(answer["milliseconds"]),
        float(answer["timestamp"]),
    )


def read_imagined(answer: Any) -> ImagineResult:
    """The answer of ``/imagine``."""
    names = answer["action_names"]
    return ImagineResult(
        int(answer["best"]),
        _floats(answer["returns"]),
        float(answer["confidence"]),
        _floats(answer["states"]),
        _floats(answer["actions"]),
        None if names is None else _names(names),
        _floats(answer["uncertainty"]),
        _maybe(answer["all_states"]),
        float(answer["milliseconds"]),
        float(answer["timestamp"]),
    )


def read_intention(answer: Any) -> IntentionResult:
    """The answer of ``/intention``."""
    return IntentionResult(
        str(answer["intention"]),
        int(answer["bytes"]),
        tuple(
            Heard(
                str(one["agent"]),
                str(one["text"]),
                tuple(one["goal"]) if isinstance(one["goal"], list) else one["goal"],
                one["confidence"],
                one["outcome"],
                _maybe(one["plan"]),
            )
            for one in answer["others"]
        ),
        _names(answer["stale"]),
        _names(answer["missing"]),
        float(answer["timestamp"]),
    )


def read_card(answer: Any) -> ModelCard:
    """The answer of ``GET /model``."""
    card = dict(answer)
    return ModelCard(
        name=_text(card.get("name")),
        version=_text(card.get("version")),
        alias=_text(card.get("alias")),
        data_revision=_text(card.get("data_revision")),
        commit=_text(card.get("commit")),
        model_variant=str(card["model_variant"]),
        gate=card.get("gate"),
        vocabulary=_names(card.get("vocabulary")),
        latent_dim=int(card["latent_dim"]),
        latent_scale=_number(card.get("latent_scale")),
        history=int(card.get("history") or 0),
        image_size=tuple(int(side) for side in card.get("image_size") or ()),
        streams=_names(card.get("streams")),
        generative=card.get("generative"),
        card=card,
    )

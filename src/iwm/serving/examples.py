"""Requests and answers for the documentation, in the loaded model's sizes and words."""

from __future__ import annotations

import base64
import struct
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from iwm.serving import imagery, intentions

if TYPE_CHECKING:
    from iwm.serving.models import Models

TIMESTAMP = 1767225600.0
_UNLOADED_WIDTH, _UNLOADED_PATCHES = 4, 2


@dataclass(frozen=True)
class Examples:
    """Call -> {name: request}, and call -> answer."""

    requests: dict[str, dict[str, Any]]
    answers: dict[str, Any]

    @classmethod
    def of(cls, models: Models | None) -> Examples:
        """For the loaded models; short vectors where none is."""
        engine = models.main if models else None
        width = engine.latent_dim if engine else _UNLOADED_WIDTH
        patches = engine.patches if engine else _UNLOADED_PATCHES
        names = list(engine.vocabulary[:3]) if engine else []
        actions = names or ["move_forward", "turn_left"]
        variant = models.variant if models else "core"
        variants = tuple(models.streams) if models and models.streams else STREAM_NAMES
        dreams = imagery.examples(png(), models.dreamer if models else None, TIMESTAMP)
        futures = intentions.examples(models.imaginer if models else None, TIMESTAMP)
        return cls(
            {
                **_requests(latent(width), actions, by_name=bool(names) or engine is None),
                **dreams[0],
                **futures[0],
            },
            {
                **dreams[1],
                **futures[1],
                **_answers(latent(width), actions[:2]),
                "encode": {
                    "z_cls": latent(width),
                    "z_patches": None,
                    "timestamp": TIMESTAMP,
                    "latent_dim": width,
                    "model_variant": variant,
                },
                "encode_dual": {
                    "semantic": latent(width),
                    "equivariant": latent(width),
                    "semantic_patches": None,
                    "equivariant_patches": None,
                    "semantic_variant": variants[0],
                    "equivariant_variant": variants[1],
                    "timestamp": TIMESTAMP,
                },
                "health": {
                    "status": "ok",
                    "model_loaded": True,
                    "model_variant": variant,
                    "device": "cpu",
                    "uptime_seconds": 12.5,
                    "total_encodes": 3,
                    "total_predicts": 2,
                    "total_rollouts": 1,
                },
                "model": _model(models, variant, width, patches),
            },
        )


STREAM_NAMES = ("invariant", "equivariant")


def latent(width: int) -> list[float]:
    """A vector that is easily told from noise."""
    return [round(0.5 - 0.01 * (i % 100), 2) for i in range(width)]


def png() -> str:
    """A grey picture of 8 x 8, as base64."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    pixels = zlib.compress((b"\0" + b"\x80" * 8) * 8)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 0, 0, 0, 0))
    data = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    return base64.b64encode(data).decode()


def _requests(z_cls: list[float], actions: list[str], *, by_name: bool) -> dict[str, Any]:
    """Every way to ask that the model knows."""
    image = png()
    numbers = [0.5, 0.3]
    named: dict[str, dict[str, Any]] = {
        "predict": {"named": {"z_cls": z_cls, "action": actions[0]}},
        "rollout": {"named": {"z_cls": z_cls, "actions": actions}},
        "plan": {
            "goal_image": {"z_cls": z_cls, "goal_image_b64": image, "horizon": 4, "candidates": 50},
            "curious": {"z_cls": z_cls, "scoring": "curiosity", "horizon": 4, "iterations": 3},
        },
        "surprise": {"named": {"z_cls_prev": z_cls, "action": actions[0], "z_cls": z_cls}},
    }
    goal = {"z_cls": z_cls, "goal_z_cls": z_cls, "horizon": 4, "candidates": 50, "iterations": 3}
    by_numbers: dict[str, dict[str, Any]] = {
        "encode": {"base64": {"image_b64": image, "return_patches": False}},
        "encode_dual": {"base64": {"image_b64": image}},
        "predict": {"numbers": {"z_cls": z_cls, "aug_params": numbers}},
        "rollout": {"numbers": {"z_cls": z_cls, "aug_seq": [numbers, numbers]}},
        "plan": {"goal": goal},
        "surprise": {"image": {"z_cls_prev": z_cls, "aug_params": numbers, "image_b64": image}},
    }
    return {
        name: {**known, **(named.get(name, {}) if by_name else {})}
        for name, known in by_numbers.items()
    }


def _answers(z_cls: list[float], actions: list[str]) -> dict[str, Any]:
    steps = len(actions)
    return {
        "predict": {
            "z_cls_pred": z_cls,
            "z_patches_pred": None,
            "mrr": 0.78,
            "uncertainty": 2.9,
            "timestamp": TIMESTAMP,
        },
        "rollout": {
            "z_cls_seq": [z_cls] * steps,
            "z_patches_seq": None,
            "mrr_seq": [0.78] * steps,
            "uncertainty_seq": [2.9] * steps,
            "timestamp": TIMESTAMP,
        },
        "plan": {
            "actions": actions,
            "score": -0.41,
            "runners_up": [{"actions": actions[::-1], "score": -0.44}],
            "z_cls_seq": [z_cls] * steps,
            "uncertainty_seq": [2.9] * steps,
            "milliseconds": 120.0,
            "timestamp": TIMESTAMP,
        },
        "surprise": {
            "surprise": 0.8,
            "threshold": 2.0,
            "surprising": False,
            "calibrated": True,
            "measure": "combined",
            "timestamp": TIMESTAMP,
        },
    }


def _model(models: Models | None, variant: str, width: int, patches: int) -> dict[str, Any]:
    if models is not None:
        from iwm.serving.answers import model_card

        return {**model_card(models), "gate": None}
    empty = ("name", "version", "alias", "data_revision", "commit", "profile", "weights_sha256")
    return {
        **dict.fromkeys((*empty, "gate", "vocabulary", "recordings")),
        "model_variant": variant,
        "latent_dim": width,
        "patches": patches,
        "image_size": [64, 64],
        "aug_dim": 16,
        "augmentation_dim": 16,
        "history": 0,
        "latent_scale": None,
        "surprise_threshold": None,
        "streams": [],
        "stream_models": {},
        "generative": None,
        "embodied": None,
        "device": "cpu",
        "precision": "float32",
    }

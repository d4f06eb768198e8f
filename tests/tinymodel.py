"""A tiny, randomly initialised model with reports that look as if it had passed its gate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from iwm.files import write_json
from iwm.models.registry import create_model
from pipelines._registry import sha256

SIZE = 32
WIDTH = 16
PATCHES = 16
AUG_DIM = 16

TABLES = {
    "surprise_scale": 2.5,
    "surprise_threshold": 2.0,
    "error": {"predicted": [0.0, 1.0, 4.0], "measured": [0.1, 0.8, 3.0]},
    "confidence": {"error": [0.0, 1.0, 3.0], "mrr": [1.0, 0.5, 0.1]},
}
CALIBRATION = {**TABLES, "with_patches": {**TABLES, "surprise_scale": 3.0}}


def tiny_model(seed: int = 0) -> Any:
    """An IWM of a few thousand parameters."""
    torch.manual_seed(seed)
    shape = {"width": WIDTH, "depth": 1, "heads": 2}
    return create_model(
        "iwm",
        image_size=[SIZE, SIZE],
        aug_dim=AUG_DIM,
        encoder={"patch": 8, **shape},
        predictor=shape,
    )


VOCABULARY = ("noop", "move_forward", "turn_left", "turn_right", "attack")
HISTORY = 3


def tiny_action_model(seed: int = 0) -> Any:
    """A model of named actions, of a few thousand parameters, whose predictions differ."""
    torch.manual_seed(seed)
    shape = {"width": WIDTH, "heads": 2}
    model = create_model(
        "action",
        image_size=[SIZE, SIZE],
        vocabulary=list(VOCABULARY),
        history=HISTORY,
        encoder={"patch": 8, "depth": 1, **shape},
        dynamics={"depth": 1, "patch_depth": 1, **shape},
    )
    with torch.no_grad():  # its heads start at "no change"
        for weight in model.dynamics.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    return model


def write_action_model(folder: Path, seed: int = 0) -> Path:
    """A model folder of named actions that can be served."""
    tiny_action_model(seed).save_pretrained(folder)
    write_json(folder / "calibration.json", CALIBRATION)
    return folder


def write_model(folder: Path, seed: int = 0) -> Path:
    """A model folder that can be served, calibration included."""
    tiny_model(seed).save_pretrained(folder)
    write_json(folder / "calibration.json", CALIBRATION)
    return folder


def write_phase(
    root: Path,
    phase: str = "core",
    *,
    seed: int = 0,
    mrr: float = 0.5,
    profile: str = "cpu",
    passed: bool = True,
) -> str:
    """What the stages up to `gate@PHASE` leave in a checkout; returns the weights' digest."""
    folder = root / "artifacts/models" / phase
    tiny_model(seed).save_pretrained(folder)
    digest = sha256(folder / "model.safetensors")
    write_json(folder / "training.json", {"steps": 10})
    write_json(root / f"artifacts/evaluation/{phase}/calibration.json", CALIBRATION)
    figure = {"mean": mrr, "low": mrr - 0.01, "high": mrr + 0.01, "n": 64}
    write_json(
        root / f"reports/metrics/{phase}.json",
        {
            "profile": profile,
            "commit": "0" * 40,
            "data_revision": "1" * 32,
            "weights_sha256": digest,
            "mrr": {"model": figure, "chance": {**figure, "mean": 0.0239}},
            "abstraction": {"model": figure},
        },
    )
    rule = {
        "figure": "mrr.model",
        "value": mrr,
        "low": mrr - 0.01,
        "high": mrr + 0.01,
        "baseline": "mrr.chance",
        "baseline_value": 0.0239,
        "comparison": ">",
        "threshold": 0.1195,
        "verdict": "pass" if passed else "fail",
        "missed_by": 0.0 if passed else 0.1195 - mrr,
        "why": "the predictor knows what transformations do",
    }
    gate = {"gate": phase, "passed": passed, "weights_sha256": digest, "rules": [rule]}
    write_json(root / f"reports/gates/{phase}.json", gate)
    return digest

"""A run that has collapsed is refused by the gate of its profile, naming the figure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from iwm.config import resolve_profile
from iwm.data.loader import Loader
from iwm.data.reader import ShardStore
from iwm.evaluation.collapse import collapse_figures
from iwm.evaluation.config import Rule
from iwm.evaluation.gates import evaluate_gate, failure
from iwm.models.iwm import IWM
from iwm.models.registry import create_model
from iwm.settings import parse

ROOT = Path(__file__).parents[2]
SHAPE = {"width": 32, "depth": 1, "heads": 2}
EPOCHS, BATCH = 5, 32


def gate(model: IWM, store: ShardStore) -> dict[str, Any]:
    """What the rules on collapse of the cpu profile's core gate say about a model."""
    batches = list(Loader(store, "test", 48, workers=0).epoch(0))
    z_cls, _ = model.eval().encode(torch.cat([batch.images[:, 0] for batch in batches]))
    episode = np.concatenate([batch.episode.numpy() for batch in batches])
    values = resolve_profile("cpu", profiles=ROOT / "profiles.yaml", environ={})
    rules = [
        parse(Rule, rule, "gate.core")
        for rule in values["gate"]["core"]
        if rule["figure"].startswith("collapse.")
    ]
    return evaluate_gate("core", rules, {"collapse": collapse_figures(z_cls, episode)})


def untrained(**over: Any) -> IWM:
    torch.manual_seed(0)
    model = create_model(
        "iwm",
        image_size=[64, 64],
        encoder={"patch": 16, "pool": "cls+mean", **SHAPE},
        predictor={**SHAPE, "dropout": 0.0},
        **over,
    )
    assert isinstance(model, IWM)
    return model


def train(model: IWM, store: ShardStore) -> None:
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    batches = Loader(store, "train", BATCH, workers=0)
    for epoch in range(EPOCHS):
        for number, batch in enumerate(batches.epoch(epoch)):
            model.before_step(epoch * len(batches) + number, statistics=False)
            optimizer.zero_grad()
            model(batch)[0].backward()
            optimizer.step()
            model.after_step(epoch / EPOCHS)


def missed(report: dict[str, Any]) -> set[str]:
    return {rule["figure"] for rule in report["rules"] if rule["verdict"] == "fail"}


def test_a_run_without_terms_against_collapse_is_refused(tiny_store: ShardStore) -> None:
    """No such terms, and a target that follows at once: to make all latents alike is best.

    What is left of their differences may well point everywhere, so the rank need not show it.
    """
    off = {"inverse": 0.0, "variance": 0.0, "covariance": 0.0, "sigreg": 0.0}
    model = untrained(objective=off, ema_start=0.0)
    train(model, tiny_store)
    report = gate(model, tiny_store)
    assert not report["passed"]
    assert "collapse.mean_std" in missed(report)
    assert failure(report).startswith("gate core failed: collapse.")


@pytest.mark.parametrize("rank", [0, 1])
def test_an_encoder_that_says_little_is_refused_by_its_rank(
    tiny_store: ShardStore, rank: int
) -> None:
    """A constant, or one number along a line."""
    model = untrained()

    def poor(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        line = torch.linspace(-1, 1, 32)
        brightness = images.mean(dim=(1, 2, 3), keepdim=True)[:, :, 0, 0] - 0.5
        cls = torch.cos(7 * line) + 20 * rank * brightness * line
        return cls, cls[:, None]

    model.encoder.forward = poor  # type: ignore[assignment]
    report = gate(model, tiny_store)
    assert not report["passed"]
    assert failure(report).startswith("gate core failed: collapse.effective_rank")

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tinymodel import tiny_model

from iwm.data.config import AugmentConfig
from iwm.evaluation.calibration import (
    apply_table,
    calibrate,
    calibration_curve,
    isotonic_table,
)
from iwm.evaluation.config import EvaluateConfig
from iwm.evaluation.core import Frames, draw, evaluate
from iwm.evaluation.retrieval import augmentation_retrieval, jitter_action, ranks
from iwm.evaluation.statistics import bootstrap_mean, chance_mrr
from iwm.models.iwm import Prediction

arrays = st.lists(st.floats(-5, 5), min_size=2, max_size=200).map(np.array)


def test_chance_is_the_harmonic_number_over_n() -> None:
    assert chance_mrr(256) == pytest.approx(0.0239, abs=1e-4)
    assert chance_mrr(5) == pytest.approx(0.457, abs=1e-3)


def test_a_random_order_reaches_chance() -> None:
    generator = torch.Generator().manual_seed(0)
    found = [
        1 / ranks(torch.randn(8, 16, generator=generator), torch.randn(64, 16, generator=generator))
        for _ in range(200)
    ]
    assert float(torch.cat(found).mean()) == pytest.approx(chance_mrr(64), rel=0.15)


def test_ranks_of_perfect_worst_and_collapsed_predictions() -> None:
    bank = torch.arange(10.0)[:, None]
    assert ranks(bank[:4], bank).tolist() == [1, 1, 1, 1]
    assert ranks(torch.tensor([[100.0]]), bank).tolist() == [10]
    assert ranks(torch.zeros(3, 2), torch.ones(9, 2)).tolist() == [5, 5, 5]  # all tied: the middle


def test_the_interval_comes_from_episodes_not_frames() -> None:
    generator = np.random.default_rng(0)
    episodes = np.repeat(np.arange(20), 50)
    values = generator.normal(size=20)[episodes]  # frames of an episode all agree
    clustered = bootstrap_mean(values, episodes)
    naive = bootstrap_mean(values, np.arange(1000))
    assert clustered["mean"] == naive["mean"] == pytest.approx(values.mean())
    assert clustered["high"] - clustered["low"] > 4 * (naive["high"] - naive["low"])
    assert clustered["low"] < clustered["mean"] < clustered["high"]
    assert bootstrap_mean(values, episodes) == clustered


@settings(max_examples=60, deadline=None)
@given(arrays, st.booleans(), st.integers(0, 100))
def test_tables_are_monotone_whatever_the_data(x: Any, rising: bool, seed: int) -> None:
    y = np.random.default_rng(seed).normal(size=len(x))
    knots, values = isotonic_table(x, y, increasing=rising)
    assert 1 <= len(knots) == len(values) <= 64
    assert (np.diff(knots) > 0).all()
    steps = np.diff(values) * (1 if rising else -1)
    assert (steps >= -1e-9).all()
    assert apply_table(np.array([-1e9]), knots, values)[0] == values[0]
    assert apply_table(np.array([1e9]), knots, values)[0] == values[-1]


def test_calibration_recovers_what_the_error_means() -> None:
    generator = np.random.default_rng(0)
    expected = generator.uniform(0.1, 1.0, 4000)
    distance = 3 * expected * generator.uniform(0.8, 1.2, 4000)
    reciprocal = (generator.uniform(size=4000) > expected).astype(float)
    tables = calibrate(expected, distance, reciprocal)
    assert np.quantile(distance * tables["surprise_scale"], 0.95) == pytest.approx(2.0)
    error = tables["error"]
    uncertainty = apply_table(expected, error["predicted"], error["measured"])
    assert calibration_curve(uncertainty, distance)["ece"] < 0.05
    confidence = apply_table(
        uncertainty, tables["confidence"]["error"], tables["confidence"]["mrr"]
    )
    assert calibration_curve(confidence, reciprocal)["ece"] < 0.05
    assert confidence.min() >= 0
    assert confidence.max() <= 1


class Oracle:
    """A model whose latents are the views' mean colours and whose prediction is perfect."""

    aug_dim, latent_dim = 16, 3

    def parameters(self) -> Any:
        return iter([torch.zeros(1)])

    def encode(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        # Red minus green is zero in a grey frame: only the gain is seen.
        z = images.mean(dim=(2, 3)).log()
        return z, z[:, None]

    def predict(self, z: torch.Tensor, action: torch.Tensor, patches: Any = None) -> Prediction:
        moved = z + action[:, :1] * np.log(2.0)
        return Prediction(moved, moved[:, None] if patches is not None else None, z[:, 0] * 0)


def test_a_model_that_knows_the_transformations_ranks_first() -> None:
    grey = torch.full((4, 3, 8, 8), 90, dtype=torch.uint8)
    found = augmentation_retrieval(
        Oracle(),  # type: ignore[arg-type]
        grey,
        AugmentConfig(contrast=0, saturation=0, hue=0),
        bank=64,
        queries=4,
    )
    for mode in found.reciprocal.values():
        assert (mode["model"] == 1).all()
        for arm in ("identity", "null_action", "shuffled_action"):
            assert mode[arm].mean() < 0.3
    assert found.error["cls_only"].max() < 1e-4
    assert (found.nearest == np.arange(4)).all()


def test_the_clean_image_is_the_null_action() -> None:
    assert jitter_action(torch.zeros(2, 4)).abs().max() == 0
    assert jitter_action(torch.ones(2, 4), 20).shape == (2, 20)


def test_the_whole_evaluation_of_an_untrained_model_is_chance(tmp_path: Path) -> None:
    model = tiny_model()
    generator = torch.Generator().manual_seed(0)

    def frames(n: int) -> Frames:
        images = torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8, generator=generator)
        return Frames(images, np.arange(n) // 3)

    config = EvaluateConfig(images=12, bank=32, queries=4, bootstrap=200)
    test = frames(12)
    result = evaluate(model, test, frames(12), test, config)
    mrr = result.metrics["mrr_cls_only"]
    assert mrr["chance"]["mean"] == pytest.approx(chance_mrr(32))
    # An untrained predictor returns what it got, so the arms are the identity's.
    assert mrr["model"]["mean"] == pytest.approx(mrr["identity"]["mean"], abs=0.02)
    assert mrr["model"]["low"] <= mrr["model"]["mean"] <= mrr["model"]["high"]
    assert 1 <= result.metrics["collapse"]["effective_rank"]["mean"] <= 16
    assert set(result.calibration) == {
        "surprise_scale",
        "surprise_threshold",
        "error",
        "confidence",
        "with_patches",
    }
    draw(result, test, config, tmp_path)
    for name in ("ranks.png", "calibration.png", "neighbours.png"):
        with Image.open(tmp_path / name) as picture:
            assert picture.width > 200
    again = evaluate(model, test, test, test, config)
    assert again.metrics["mrr"] == result.metrics["mrr"]

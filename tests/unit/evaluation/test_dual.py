"""Abstraction index, probes, and two streams side by side."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from iwm.data.config import AugmentConfig
from iwm.errors import DataError
from iwm.evaluation.abstraction import Moves, abstraction_figures, moves
from iwm.evaluation.config import EvaluateConfig
from iwm.evaluation.core import Frames
from iwm.evaluation.dual import Held, compare
from iwm.evaluation.latents import pixels
from iwm.evaluation.probes import Labelled, classify, earlier_and_later, jitter_probe, ridge
from iwm.models.iwm import IWM
from iwm.models.registry import create_model

EPISODE = np.repeat(np.arange(6), 8)
AUGMENT = AugmentConfig()


def images(seed: int = 0) -> Tensor:
    return torch.randint(
        0, 256, (48, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )


def test_the_index_is_one_for_a_latent_that_no_jitter_moves() -> None:
    frames = images()
    # Jittered images are unknown to the table and stand in their old order.
    lookup = {float(one.float().sum()): i for i, one in enumerate(frames)}

    def constant_under_jitter(given: Tensor) -> Tensor:
        names = [lookup.get(float(one.float().sum()), i) for i, one in enumerate(given)]
        return torch.nn.functional.one_hot(torch.tensor(names), 48).float()

    found = moves(constant_under_jitter, frames, EPISODE, AUGMENT)
    figures = abstraction_figures(
        {"ideal": found, "pixels": moves(pixels, frames, EPISODE, AUGMENT)}, EPISODE
    )
    assert figures["ideal"]["mean"] == figures["ideal"]["low"] == 1.0
    assert figures["pixels"]["mean"] < 0.5
    gap = figures["ideal_minus_pixels"]
    assert gap["low"] <= gap["mean"] == pytest.approx(1.0 - figures["pixels"]["mean"])


def test_collapsed_latents_are_not_abstract_and_clipping_holds() -> None:
    zero, one = np.zeros(48), np.ones(48)
    figures = abstraction_figures({"dead": Moves(zero, zero), "wild": Moves(3 * one, one)}, EPISODE)
    assert figures["dead"]["mean"] == figures["wild"]["mean"] == 0.0
    with pytest.raises(DataError, match="one episode"):
        moves(pixels, images(), np.zeros(48), AUGMENT)


def test_ridge_recovers_a_linear_map_and_ignores_constant_features() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 5, generator=generator)
    x[:, 3] = 2.0
    y = x[:, :2] @ torch.tensor([[1.0, -2.0], [0.5, 3.0]]) + 4.0
    torch.testing.assert_close(ridge(x, y)(x).float(), y, atol=1e-2, rtol=1e-2)
    # Of noise the strongest penalty leaves one out best: nothing but the mean is learned.
    noise = torch.randn(60, 40, generator=generator)
    guess = ridge(noise, torch.randn(60, 1, generator=generator))
    assert float(guess(torch.randn(500, 40, generator=generator)).std()) < 0.5


def test_classes_are_told_apart_where_they_can_be() -> None:
    label = np.arange(90) % 3
    features = torch.nn.functional.one_hot(torch.from_numpy(label), 3) + 0.1 * torch.randn(90, 3)
    assert classify(features, label, features, label).mean() > 0.95


def test_episodes_are_split_by_time() -> None:
    frames = Labelled(images(), EPISODE, EPISODE)
    early, late = earlier_and_later(frames, 0.75)
    assert len(early.label) == 36
    assert torch.equal(early.images[:6], frames.images[:6])
    assert torch.equal(late.images[:2], frames.images[6:8])
    assert set(late.label) == set(early.label)


def test_the_jitter_is_read_off_pairs_that_show_it() -> None:
    def shows(given: Tensor) -> Tensor:
        mean = (given.float() / (255 if given.dtype == torch.uint8 else 1)).mean((2, 3))
        return mean.clamp_min(1e-3).log()

    frames = images()
    brightness = AugmentConfig(contrast=0.0, saturation=0.0, hue=0.0)
    told = jitter_probe(shows, frames[:24], frames[24:], brightness)
    blind = jitter_probe(
        lambda given: torch.zeros(len(given), 2), frames[:24], frames[24:], AUGMENT
    )
    assert told.mean() > 0.95
    assert blind.mean() < 0.2


def stream(**over: Any) -> IWM:
    torch.manual_seed(0)
    shape = {"width": 32, "depth": 1, "heads": 2}
    model = create_model(
        "iwm", image_size=[32, 32], encoder={"patch": 8, **shape}, predictor={**shape, **over}
    )
    assert isinstance(model, IWM)
    return model


def test_two_streams_are_compared_on_the_same_frames() -> None:
    recording = EPISODE % 2
    labelled = Labelled(images(), recording, EPISODE)
    held = Held(Frames(images()[::12], EPISODE[::12]), labelled, labelled)
    config = EvaluateConfig(bank=8, queries=2, bootstrap=100)
    metrics = compare(stream(conditioning="none"), stream(), held, config)
    for name in ("mrr", "mrr_cls_only"):
        arms = metrics[name]
        difference = arms["equivariant"]["mean"] - arms["invariant"]["mean"]
        assert arms["equivariant_minus_invariant"]["mean"] == pytest.approx(difference)
        assert arms["chance"]["mean"] == pytest.approx(0.3397, abs=1e-3)
    # Both have the same encoder: no difference, exactly.
    gap = metrics["abstraction"]["invariant_minus_equivariant"]
    assert gap["low"] == gap["high"] == 0.0
    assert set(metrics["probes"]) == {
        "episode",
        "episode_jittered",
        "recording",
        "recording_jittered",
        "jitter",
    }
    assert metrics["probes"]["jitter"]["equivariant_minus_invariant"]["mean"] == 0.0


def test_a_predictor_without_conditioning_does_not_hear_the_action() -> None:
    model = stream(conditioning="none").eval()
    z_cls, z_patches = model.encode(images()[:4])
    one, other = (
        model.predict(z_cls, torch.full((4, 16), value), z_patches) for value in (0.0, 1.0)
    )
    assert torch.equal(one.z_cls, other.z_cls)
    assert not any("embed_action" in name for name in model.state_dict())

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tinyaime import tiny, windows

from iwm.data.batch import Batch
from iwm.data.reader import ShardStore
from iwm.errors import DataError
from iwm.evaluation.aime import (
    Bounds,
    compare_bounds,
    effective_components,
    episode_labels,
    held_out_bounds,
    held_out_windows,
    measure,
    moving_psnr,
    open_loop,
    reconstruction_quality,
)
from iwm.evaluation.aime_pictures import draw
from iwm.models.aime.imagine import Imagined, State


def moving(batch: int = 6, length: int = 6, seed: int = 0) -> Batch:
    """Windows in which a bright square runs to the right."""
    found = windows(batch, length, seed)
    frames = torch.full_like(found.images, 40)
    for t in range(length):
        frames[:, t, :, 8:20, 2 + 3 * t : 12 + 3 * t] = 220
    return replace(found, images=frames, action=found.action.clamp_min(0))


def bounds(total: np.ndarray[Any, Any], responsibilities: np.ndarray[Any, Any]) -> Bounds:
    return Bounds(total, {"kl_z": total}, responsibilities, np.arange(len(total)) // 2)


def test_psnr_looks_at_moving_pixels_only() -> None:
    last = torch.zeros(3, 16, 16)
    target = last.clone()[None]
    target[0, :, :8] = 0.5
    assert moving_psnr(last[None], target, last) == pytest.approx(20 * np.log10(1 / 0.5), abs=1e-4)
    half = target.clone()
    half[0, :, 8:] = 1.0  # wrong where nothing moved: no matter
    half[0, :, :8] = 0.4
    assert moving_psnr(half, target, last) == pytest.approx(20, abs=1e-3)
    assert moving_psnr(half, last[None], last) is None


def test_windows_are_spread_over_the_held_out_play(tiny_store: ShardStore) -> None:
    found = held_out_windows(
        tiny_store, "test", window=6, count=10, batch_size=4, vocabulary=tiny_store.all_actions()
    )
    assert [len(batch) for batch in found] == [4, 4, 2]
    assert found[0].images.shape[1:3] == (6, 3)
    keys = [key for batch in found for key in batch.keys]
    assert len(set(keys)) == 10
    assert len({episode_labels(batch)[0] for batch in found}) == 3  # not one episode's beginning
    every = held_out_windows(tiny_store, "test", window=6, count=10**6, batch_size=64)
    assert set(keys) <= {key for batch in every for key in batch.keys}


def test_a_better_bound_is_a_gain_with_its_interval() -> None:
    noise = np.random.default_rng(0).normal(size=40)
    even = np.full((40, 4), 0.25)
    found = compare_bounds(bounds(10 + noise, even), bounds(12 + noise, even))
    assert found["gain"]["mean"] == pytest.approx(2)
    assert found["gain"]["low"] == pytest.approx(2)  # the noise is paired away
    assert found["model"]["mean"] > found["single"]["mean"]
    assert found["gain_kl_z"]["mean"] == pytest.approx(2)
    with pytest.raises(DataError, match="cannot be paired"):
        compare_bounds(bounds(noise, even), bounds(noise[:38], even[:38]))


def test_components_in_use_are_counted() -> None:
    even, one = np.full((20, 4), 0.25), np.eye(4)[np.zeros(20, int)]
    assert effective_components(bounds(np.ones(20), even))["mean"] == pytest.approx(4)
    assert effective_components(bounds(np.ones(20), one))["mean"] == pytest.approx(1)
    turns = np.eye(4)[np.arange(20) % 2]  # one at a time, two over time
    figure = effective_components(bounds(np.ones(20), turns))
    assert figure["mean"] == pytest.approx(2)
    assert figure["low"] <= figure["mean"] <= figure["high"] + 1e-9


def test_bounds_are_the_models_own_and_repeatable() -> None:
    model, batches = tiny().eval(), [moving(), moving(seed=1)]
    one, two = (held_out_bounds(model, batches, samples=4) for _ in range(2))
    assert np.array_equal(one.total, two.total)
    assert one.total.shape == (12,)
    assert one.responsibilities.shape == (12, 5)
    np.testing.assert_allclose(one.responsibilities.sum(1), 1, rtol=1e-5)
    np.testing.assert_allclose(sum(one.terms.values()), one.total)
    assert set(one.terms) == {"recon", "kl_z", "kl_sticks", "kl_alpha"}


def test_a_model_that_copies_gains_nothing_over_copying(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = tiny().eval(), moving(length=10)
    frames = batch.images.float() / 255

    def copying(state: Any, actions: Any, how: str) -> Imagined:
        last = frames[:, 1:2].expand(-1, 8, -1, -1, -1)
        return Imagined(state.z, state.z, state.z, state.maps, last, state)

    monkeypatch.setattr(model, "imagine", copying)
    found = open_loop(model, [batch], horizon=8)
    assert found["gain"]["mean"] == pytest.approx(0)
    assert found["k8"]["gain"]["mean"] == pytest.approx(0)
    assert found["model"]["n"] == 6

    def knowing(state: Any, actions: Any, how: str) -> Imagined:
        near = 0.9 * frames[:, 2:] + 0.1 * frames[:, 1:2]
        return Imagined(state.z, state.z, state.z, state.maps, near, state)

    monkeypatch.setattr(model, "imagine", knowing)
    found = open_loop(model, [batch], horizon=8)
    assert found["gain"]["mean"] == pytest.approx(20, abs=0.1)  # a tenth of the error


@pytest.mark.parametrize("count", [2, 3, 7])
def test_wrong_actions_are_never_a_windows_own(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = tiny().eval(), moving(count, length=4)
    asked: list[torch.Tensor] = []

    def imagine(state: Any, actions: torch.Tensor, how: str) -> Imagined:
        asked.append(actions)
        return Imagined(state.z, state.z, state.z, state.maps, batch.images[:, 2:] / 255, state)

    monkeypatch.setattr(model, "imagine", imagine)
    monkeypatch.setattr(model, "observe", lambda *_: State(*[torch.zeros(1)] * 5))
    names = torch.arange(count)[:, None].expand(-1, 4)
    monkeypatch.setattr(model, "action_vectors", lambda *_: names[..., None].float())
    for seed in range(5):
        asked.clear()
        open_loop(model, [batch], horizon=2, seed=seed)
        true, wrong = (found[:, 0, 0] for found in asked)
        assert (true != wrong).all()
        assert sorted(wrong.tolist()) == true.tolist()


def test_windows_too_short_and_still_ones_are_refused() -> None:
    model = tiny().eval()
    with pytest.raises(DataError, match="6 frames are too short to predict 8; expected at least 9"):
        open_loop(model, [moving()], horizon=8)
    still = moving(length=10)
    still = replace(still, images=still.images[:, :1].expand_as(still.images).contiguous())
    with pytest.raises(DataError, match="nothing moves"):
        open_loop(model, [still], horizon=8)


def test_the_pictures_of_the_report_page(tmp_path: Path) -> None:
    paths = draw(tiny().eval(), moving(length=10), tmp_path, rows=2, columns=4)
    names = ["reconstructions.png", "attention.png", "components.png", "imagined.png"]
    assert [path.name for path in paths] == names
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)


def test_everything_the_gate_reads() -> None:
    model, single = tiny(), tiny(max_components=1)
    found = measure(model, single, [moving(length=10)], samples=2, draws=1, resamples=100)
    assert found["elbo"]["gain"]["n"] == 6
    assert 1 <= found["effective_components"]["mean"] <= 5
    assert set(found["open_loop"]) >= {"model", "copy_last", "gain", "wrong_action", "k1", "k8"}
    quality = found["reconstruction"]
    assert set(quality) == {"psnr", "ssim", "moving", "copy_last", "gain"}
    assert quality["psnr"]["mean"] > 0
    again = reconstruction_quality(model, [moving(length=10)], resamples=100)
    assert again == quality

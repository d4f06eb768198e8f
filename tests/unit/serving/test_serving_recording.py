"""Recorded programs: the model's own answers at every size, or no program."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tinymodel import HISTORY, SIZE, VOCABULARY, WIDTH, tiny_action_model, tiny_model
from torch import Tensor, nn

from iwm.models import thin
from iwm.models.action import History
from iwm.serving import recording
from iwm.serving.engine import Earlier, Engine
from iwm.serving.recording import Recorded


@pytest.fixture(scope="module", params=[thin.LARGE, 16])
def acting(request: pytest.FixtureRequest) -> Iterator[Engine]:
    """As it is, and with maps that are turned round where they have few rows."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(thin, "LARGE", request.param)
        patch.setattr(thin, "turning_pays", lambda: True)
        yield Engine(tiny_action_model(), "cpu")


def programs(engine: Engine) -> list[Any]:
    held = engine._programs
    several = (held._encode, held._first, held._next)
    return [key for one in several if one for key in one._programs]


def test_there_are_programs(acting: Engine) -> None:
    turned = acting._programs._turned
    assert len(programs(acting)) == (3 + 2 * HISTORY if turned else 1 + HISTORY)
    assert programs(Engine(tiny_model(), "cpu"))


@settings(deadline=None, max_examples=25)
@given(
    batch=st.integers(1, 12),
    steps=st.integers(1, 5),
    past=st.integers(0, HISTORY - 1),
    seed=st.integers(0, 99),
)
def test_a_rollout_is_the_models(
    acting: Engine, batch: int, steps: int, past: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    z_cls = rng.standard_normal((batch, WIDTH)).astype(np.float32)
    named = rng.integers(len(VOCABULARY), size=batch * steps)
    actions = acting.action_vector([VOCABULARY[i] for i in named]).reshape(batch, steps, -1)
    earlier = known = None
    if past:
        before = rng.standard_normal((batch, past, WIDTH)).astype(np.float32)
        earlier = Earlier(before, np.repeat(actions[:, :1], past, axis=1))
        known = History(torch.from_numpy(before), torch.from_numpy(earlier.actions))
    found = acting.rollout(z_cls, actions, history=earlier)
    wanted = acting.model.rollout(torch.from_numpy(z_cls), torch.from_numpy(actions), known)
    np.testing.assert_allclose(found.z_cls, wanted.z_cls.numpy(), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found.log_error, wanted.log_error.numpy(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("make", [tiny_model, tiny_action_model])
@pytest.mark.parametrize("count", [1, 2, 7, 8, 20])
def test_images_are_encoded_as_by_the_model(make: Any, count: int) -> None:
    engine = Engine(make(), "cpu")
    images = np.random.default_rng(count).integers(0, 256, (count, SIZE, SIZE, 3), np.uint8)
    found = engine.encode(images)
    z_cls, z_patches = engine.model.encode(torch.from_numpy(images).permute(0, 3, 1, 2))
    np.testing.assert_allclose(found.z_cls, z_cls.numpy(), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found.z_patches, z_patches.numpy(), rtol=1e-5, atol=1e-5)


class OfItsSize(nn.Module):
    """A size that a recording takes for a constant."""

    def forward(self, x: Tensor) -> Tensor:
        return x * len(x)


def kind(x: Tensor) -> bool:
    return len(x) > 1


def ones(count: int) -> tuple[Tensor]:
    return (torch.ones(count, 2),)


def test_what_cannot_be_recorded_for_all_sizes_is_not() -> None:
    one = Recorded(OfItsSize(), kind)
    one.record([[ones(1)], [ones(2), ones(5)]])
    assert list(one._programs) == [False]
    for count in (1, 2, 5):
        assert one(*ones(count)).sum() == 2 * count**2


def test_what_takes_long_is_not_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "WORTH_S", 0.0)
    one = Recorded(nn.Identity(), kind)
    one.record([[ones(1)]])
    assert not one._programs


def test_the_weights_go_with_the_engine() -> None:
    engine = Engine(tiny_action_model(), "cpu")
    gc.collect()
    gc.disable()  # what the service holds at its start, the collector no longer visits
    try:
        left = [weakref.ref(weight) for weight in engine.model.parameters()]
        del engine
        assert not any(weight() is not None for weight in left)
    finally:
        gc.enable()

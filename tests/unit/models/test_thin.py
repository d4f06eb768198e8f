"""Few rows, the other way round: the same numbers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from iwm.models import thin


@pytest.fixture(autouse=True)
def turned(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine where it pays."""
    monkeypatch.setattr(thin, "turning_pays", lambda: True)
    monkeypatch.setattr(thin, "LARGE", 1)


@settings(deadline=None, max_examples=30)
@given(
    shape=st.lists(st.integers(1, 6), min_size=1, max_size=3),
    inner=st.integers(1, 40),
    outer=st.integers(1, 40),
    biased=st.booleans(),
)
def test_it_is_the_linear_map(shape: list[int], inner: int, outer: int, biased: bool) -> None:
    generator = torch.Generator().manual_seed(inner * 41 + outer)
    x = torch.randn(*shape, inner, generator=generator)
    weight = torch.randn(outer, inner, generator=generator)
    bias = torch.randn(outer, generator=generator) if biased else None
    found = thin.linear(x, weight, bias)
    assert found.shape == (*shape, outer)
    assert found.is_contiguous()
    torch.testing.assert_close(found, F.linear(x, weight, bias), rtol=1e-4, atol=1e-5)


def test_layers_are_exchanged_and_keep_their_weights() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ModuleDict({"a": nn.Linear(8, 4, bias=False)})["a"])
    before, x = model.state_dict(), torch.randn(5, 8)
    with torch.inference_mode():
        wanted = model.eval()(x)
        thin.thin(model)
        torch.testing.assert_close(model(x), wanted)
    assert all(type(layer) is thin.ThinLinear for layer in model)
    assert not any(layer.training for layer in model)
    assert all(torch.equal(model.state_dict()[key], value) for key, value in before.items())


def test_other_numbers_are_left_alone() -> None:
    x, weight = torch.randn(4, 8, dtype=torch.bfloat16), torch.randn(3, 8, dtype=torch.bfloat16)
    assert torch.equal(thin.linear(x, weight, None), F.linear(x, weight))

from __future__ import annotations

import pytest
import torch
from torch.autograd import gradcheck

from iwm.objectives.attention import (
    attention_kl,
    centre_of_mass,
    displacement_loss,
    fuse,
    normalise_map,
    slot_diversity,
)


def scores(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def spot(row: int, column: int, size: int = 5) -> torch.Tensor:
    """All attention at one place: [1, size, size]."""
    maps = torch.zeros(1, size, size, dtype=torch.float64)
    maps[0, row, column] = 1
    return maps


def test_fused_attention_is_a_distribution_between_its_sources() -> None:
    q, p = (normalise_map(scores(2, 3, 4, 4, seed=seed)) for seed in (0, 1))
    one, none = torch.ones(2, 3, dtype=torch.float64), torch.full((2, 3), 1e-12).double()
    fused = fuse(q, p, one, one)
    torch.testing.assert_close(fused.exp().sum((-2, -1)), one)
    torch.testing.assert_close(fused, normalise_map((q + p) / 2))
    torch.testing.assert_close(fuse(q, p, one, none), q)
    torch.testing.assert_close(fuse(q, p, none, one), p)


def test_the_attention_kl_is_zero_for_equal_maps_only() -> None:
    q, p = (normalise_map(scores(2, 3, 4, 4, seed=seed)) for seed in (0, 1))
    assert float(attention_kl(q, q)) == 0
    assert float(attention_kl(q, p)) > 0.1


def test_the_centre_of_mass_runs_from_corner_to_corner() -> None:
    assert centre_of_mass(spot(0, 0))[0].tolist() == [-1, -1]
    assert centre_of_mass(spot(4, 2))[0].tolist() == [1, 0]


def test_a_displacement_foretold_costs_nothing_and_the_target_is_a_constant() -> None:
    before, after = spot(0, 0)[None, None], spot(2, 1)[None, None]
    field = torch.zeros(1, 1, 1, 2, 5, 5, dtype=torch.float64)
    field[..., 0, 0] = torch.tensor([1.0, 0.5])  # two rows of five are half the way, and so on
    inside = torch.tensor([[True]])
    assert float(displacement_loss(field, before, after, inside)) == pytest.approx(0)
    wrong = displacement_loss(-field, before, after, inside)
    assert float(wrong) == pytest.approx(4 + 1)
    after.requires_grad_()
    displacement_loss((0 * field).requires_grad_(), before, after, inside).backward()
    assert after.grad is None
    # A step that begins an episode does not count.
    assert float(displacement_loss(-field, before, after, ~inside)) == 0


def test_diversity_is_zero_for_slots_that_share_nothing() -> None:
    apart = torch.cat([spot(0, 0), spot(1, 1), spot(2, 2)])
    assert float(slot_diversity(apart)) == 0
    assert float(slot_diversity(torch.cat([spot(0, 0)] * 3))) == pytest.approx(1)
    assert float(slot_diversity(spot(0, 0))) == 0


def test_gradients_are_those_of_finite_differences() -> None:
    q, p = (normalise_map(scores(2, 3, 3, 3, seed=seed)).requires_grad_() for seed in (0, 1))
    weight = scores(2, 3, seed=2).exp().requires_grad_()
    assert gradcheck(fuse, (q, p, weight, (2 * weight.detach()).requires_grad_()))
    assert gradcheck(attention_kl, (q, p))
    assert gradcheck(slot_diversity, (q.detach().exp().requires_grad_(),))
    field = scores(1, 2, 3, 2, 3, 3, seed=3).requires_grad_()
    before, after = (normalise_map(scores(1, 2, 3, 3, 3, seed=seed)).exp() for seed in (4, 5))
    inside = torch.tensor([[True, False]])
    assert gradcheck(lambda x: displacement_loss(x, before, after, inside), (field,))

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from iwm.objectives.collapse import (
    covariance_loss,
    deviation,
    effective_rank,
    sigreg_loss,
    variance_loss,
)
from iwm.objectives.jepa import error_head_loss, error_of, inverse_loss, prediction_loss


def normal(n: int = 512, d: int = 16, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def test_variance_pushes_only_what_is_too_narrow() -> None:
    assert variance_loss(2 * normal()) == 0
    assert variance_loss(torch.ones(8, 4)) > 0.98
    latents = (0.1 * normal()).requires_grad_()
    variance_loss(latents).backward()
    assert latents.grad is not None
    moved = latents - 100 * latents.grad
    assert deviation(moved).mean() > deviation(latents).mean()


def test_covariance_is_zero_for_independent_dimensions_only() -> None:
    independent, copied = normal(4096, 4), normal(4096, 1).expand(-1, 4)
    assert covariance_loss(independent) < 0.01
    torch.testing.assert_close(covariance_loss(copied), torch.tensor(3.0), atol=0.3, rtol=0)


def test_sigreg_tells_a_normal_cloud_from_collapsed_and_shifted_ones() -> None:
    directions = torch.randn(16, 256, generator=torch.Generator().manual_seed(1))
    good = sigreg_loss(normal(), directions)
    for bad in (0.1 * normal(), normal() + 2, normal(512, 1).expand(-1, 16)):
        assert sigreg_loss(bad, directions) > 3 * good


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 12), st.integers(0, 1000))
def test_the_effective_rank_is_the_number_of_equal_directions(rank: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(16, 16, generator=generator)).Q[:rank]
    latents = torch.randn(4000, rank, generator=generator) @ basis + 5
    found = float(effective_rank(latents))
    assert 0.95 * rank <= found <= rank + 0.01


def test_a_collapsed_cloud_has_rank_one_at_most() -> None:
    assert effective_rank(torch.ones(32, 8)) <= 1.01


def test_the_error_is_per_dimension_and_its_head_learns_its_logarithm() -> None:
    predicted, target = torch.zeros(4, 9), torch.full((4, 9), 2.0)
    torch.testing.assert_close(error_of(predicted, target), torch.full((4,), 2.0))
    right = error_head_loss(torch.full((4,), 2.0).log(), predicted, target)
    assert right < 1e-6 < error_head_loss(torch.zeros(4), predicted, target)


def test_targets_get_no_gradient() -> None:
    predicted = normal(4, 3).requires_grad_()
    target = normal(4, 3, seed=1).requires_grad_()
    prediction_loss(predicted, target).backward()
    assert predicted.grad is not None
    assert target.grad is None


def test_unused_entries_of_the_action_do_not_count() -> None:
    scale = torch.tensor([1.0, 2.0, 0.0])
    recovered, action = torch.tensor([[1.0, 2.0, 9.0]]), torch.tensor([[0.0, 0.0, 0.0]])
    assert inverse_loss(recovered, action, scale) == 1.0

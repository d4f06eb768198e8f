from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd import gradcheck
from torch.nn import functional as F

from iwm.errors import ConfigError
from iwm.objectives.gradients import (
    BALANCERS,
    RGB,
    Balancer,
    MeanUnit,
    balanced_loss,
    rotation_loss,
    task_gradients,
    turned,
)


def rows(tasks: int, size: int = 50, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(tasks, size, dtype=torch.float64, generator=generator)


def rotated(unit: Tensor, direction: Tensor, alpha: Tensor) -> Tensor:
    """The vector form, as the paper writes it."""
    along = unit @ direction
    towards = (direction - along[:, None] * unit) / (1 - along.square()).sqrt()[:, None]
    return alpha.cos()[:, None] * unit + alpha.sin()[:, None] * towards


def vector_loss(unit: Tensor, direction: Tensor, alpha: Tensor, lambd: float) -> Tensor:
    turned_ = rotated(unit, direction, alpha)
    count = len(unit)
    pairs = [1 - turned_[i] @ turned_[j] for i in range(count) for j in range(count) if i != j]
    return torch.stack(pairs).mean() + lambd / (4 * count) * (turned_ - unit).square().sum()


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 5), st.integers(0, 1000), st.floats(0, 3))
def test_the_gram_form_is_the_vector_form(tasks: int, seed: int, lambd: float) -> None:
    unit = F.normalize(rows(tasks, seed=seed), dim=1)
    direction = F.normalize(rows(1, seed=seed + 1)[0], dim=0)
    alpha = (0.5 * rows(1, tasks, seed=seed + 2)[0].abs()).requires_grad_()
    gram, along = unit @ unit.T, unit @ direction
    one = rotation_loss(gram, along, alpha, lambd)
    other = vector_loss(unit, direction, alpha, lambd)
    assert abs(float((one - other).detach())) < 1e-6
    slopes = [torch.autograd.grad(loss, alpha)[0] for loss in (one, other)]
    torch.testing.assert_close(*slopes, atol=1e-6, rtol=0)
    own, common = turned(along, alpha)
    explicit = rotated(unit, direction, alpha)
    torch.testing.assert_close(
        own[:, None] * unit + common[:, None] * direction, explicit, atol=1e-6, rtol=0
    )


def test_two_steps_of_rgb_are_those_of_the_vector_form() -> None:
    """The whole algorithm, momentum and warm start included, written out with vectors."""
    rgb, direction, alpha = RGB(alpha_steps=3), torch.zeros(50).double(), torch.zeros(3).double()
    for seed in (0, 1):
        gradients = rows(3, seed=seed) * torch.tensor([[1.0], [20.0], [0.1]])
        unit = F.normalize(gradients, dim=1)
        direction = F.normalize(0.9 * direction + 0.1 * F.normalize(unit.mean(0), dim=0), dim=0)
        cap = torch.arccos(unit @ direction)
        for _ in range(3):
            alpha = alpha.detach().requires_grad_()
            loss = vector_loss(unit, direction, alpha, 1.0)
            alpha = torch.minimum(alpha - 0.2 * torch.autograd.grad(loss, alpha)[0], cap)
            alpha = alpha.clamp_min(0)
        step = rotated(unit, direction, alpha.detach()).mean(0) * gradients.norm(dim=1).mean()
        torch.testing.assert_close(rgb.double().combine(gradients), step, atol=1e-6, rtol=1e-6)
    assert (rgb.alpha > 0).all()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 4))
def test_a_gradient_is_never_turned_beyond_the_common_direction(seed: int, tasks: int) -> None:
    gram_rows = F.normalize(rows(tasks, 4, seed), dim=1)
    direction = F.normalize(rows(1, 4, seed + 1)[0], dim=0)
    along = gram_rows @ direction
    start = torch.full((tasks,), 3.0, dtype=torch.float64)
    alpha = RGB().rotate(gram_rows @ gram_rows.T, along, start)
    assert (alpha <= torch.arccos(along) + 1e-12).all()
    own, common = turned(along, alpha)
    after = own[:, None] * gram_rows + common[:, None] * direction
    assert (after @ direction >= along - 1e-9).all()
    torch.testing.assert_close(after.norm(dim=1), torch.ones(tasks).double())


def test_equal_opposed_and_missing_gradients() -> None:
    one = rows(1)
    same = one.expand(3, -1)
    torch.testing.assert_close(RGB().double().combine(same), one[0])
    torch.testing.assert_close(MeanUnit().combine(same), one[0])
    for balancer in (RGB().double(), MeanUnit()):
        assert torch.isfinite(balancer.combine(torch.cat([one, -one]))).all()
        alone = balancer.combine(torch.cat([one, 0 * one, 0 * one]))
        torch.testing.assert_close(alone, one[0])
        assert (balancer.combine(0 * rows(3)) == 0).all()


def test_the_step_is_no_longer_than_the_mean_gradient() -> None:
    gradients = rows(3) * torch.tensor([[100.0], [1.0], [0.01]])
    for balancer in (RGB().double(), MeanUnit()):
        assert balancer.combine(gradients).norm() <= gradients.norm(dim=1).mean() * (1 + 1e-9)


def test_a_task_cannot_drown_the_others_by_its_size() -> None:
    gradients = rows(3)
    large = gradients * torch.tensor([[1e6], [1.0], [1.0]])
    for make in (RGB, MeanUnit):
        one, other = make().double().combine(gradients), make().double().combine(large)
        assert F.cosine_similarity(one, other, dim=0) == pytest.approx(1)
    added = F.cosine_similarity(Balancer().combine(large), gradients[0], dim=0)
    assert added == pytest.approx(1)


def test_pcgrad_leaves_no_conflict_between_two() -> None:
    pytest.importorskip("torchjd")
    gradients = torch.tensor([[1.0, 0.0], [-1.0, 1.0]])
    step = BALANCERS["pcgrad"]().combine(gradients)
    assert (gradients @ step >= 0).all()


def tasks_of(layer: nn.Linear) -> list[Tensor]:
    out = layer(torch.ones(2, 3))
    return [out.square().sum(), (out - 1).abs().sum(), torch.zeros(())]


@pytest.mark.parametrize("name", ["sum", "unit", "rgb"])
def test_the_interface_adds_the_balanced_gradient(name: str) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(3, 2)
    balancer = BALANCERS[name]()
    balancer.task_num, balancer.device, balancer.rep_grad = 3, torch.device("cpu"), False
    balancer.get_share_params = lambda: layer.parameters()
    flat = balancer.backward(tasks_of(layer))
    assert layer.weight.grad is not None
    assert layer.bias.grad is not None
    found = torch.cat([layer.weight.grad.flatten(), layer.bias.grad])
    torch.testing.assert_close(found, flat)
    again = BALANCERS[name]()
    torch.testing.assert_close(
        flat, again.combine(task_gradients(tasks_of(layer), list(layer.parameters())))
    )
    balancer.backward(tasks_of(layer))  # like any backward, it adds to what is there
    assert layer.weight.grad.norm() > 1.5 * found[:6].norm()


def test_one_loss_carries_the_balanced_gradient_through_a_plain_trainer() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(3, 2)
    parameters = list(layer.parameters())
    want = RGB().combine(task_gradients(tasks_of(layer), parameters))
    loss = balanced_loss(tasks_of(layer), parameters, RGB())
    assert float(loss) == pytest.approx(float(sum(tasks_of(layer))))  # type: ignore[arg-type]
    loss.backward()
    found = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])
    torch.testing.assert_close(found, want)


def test_a_plain_sum_takes_one_backward_pass_to_the_same_gradient() -> None:
    one, other = (nn.Linear(3, 2) for _ in range(2))
    other.load_state_dict(one.state_dict())
    balanced_loss(tasks_of(one), one.parameters(), Balancer()).backward()
    torch.stack(tasks_of(other)).sum().backward()
    for p, q in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)


def test_the_state_goes_into_a_checkpoint() -> None:
    one, other = RGB().size(3, 50), RGB().size(3, 50)
    one.combine(rows(3).float())
    other.load_state_dict(one.state_dict())
    later = rows(3, seed=5).float()
    assert torch.equal(one.combine(later), other.combine(later))


def test_what_does_not_fit_is_refused() -> None:
    layer = nn.Linear(3, 2)
    balancer = RGB()
    with pytest.raises(ConfigError, match="get_share_params"):
        balancer.backward(tasks_of(layer))
    balancer.get_share_params = layer.parameters
    balancer.task_num = 2
    with pytest.raises(ConfigError, match="3 losses given, task_num is 2"):
        balancer.backward(tasks_of(layer))
    balancer.task_num, balancer.rep_grad = 3, True
    with pytest.raises(ConfigError, match="rep_grad"):
        balancer.backward(tasks_of(layer))
    with pytest.raises(ConfigError, match="mu"):
        RGB(mu=1.0)


def test_the_rotation_loss_has_the_slope_of_finite_differences() -> None:
    unit = F.normalize(rows(3), dim=1)
    direction = F.normalize(unit.mean(0), dim=0)
    gram, along = unit @ unit.T, unit @ direction
    alpha = torch.tensor([0.1, 0.4, math.pi / 4], dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda x: rotation_loss(gram, along, x, 1.0), (alpha,))

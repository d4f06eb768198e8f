"""The bound's terms against oracles: numerical integration, bounds, finite differences."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck
from torch.distributions import Gamma, Normal, kl_divergence

from iwm.objectives.elbo import (
    entropy,
    expected_log_rest,
    gamma_kl,
    gamma_moments,
    gaussian_kl,
    gaussian_log_prob,
    gram_loss,
    kumaraswamy_logs,
    log1mexp,
    mixture_joint,
    mixture_kl,
    mixture_kl_bound,
    reconstruction,
    stick_breaking,
    stick_kl,
)

GRID = (0.1, 0.3, 0.7, 1.0, 2.0, 5.0, 20.0)
ALPHAS = (0.2, 1.0, 5.0, 10.0)


def doubles(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def wanted(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return tuple(tensor.clone().requires_grad_() for tensor in tensors)


def integrated_kl(a: float, b: float, alpha: float) -> float:
    """E_q[log q(v) - log p(v)] over u = 1 / (1 + e^-t): the integrand dies off at both ends, so
    the trapezoid rule is as good as exact.
    """
    t = np.linspace(-60, 45, 40_001)
    log_u = -np.logaddexp(0, -t)
    density = np.exp(log_u - np.logaddexp(0, t))
    x = log_u / b
    with np.errstate(divide="ignore"):  # in the branch that is not taken
        log_v = np.where(x > -0.5, np.log(-np.expm1(x)), np.log1p(-np.exp(x))) / a
        log_rest = np.where(log_v > -0.5, np.log(-np.expm1(log_v)), np.log1p(-np.exp(log_v)))
    log_q = math.log(a * b) + (a - 1) * log_v + (b - 1) * x
    log_p = math.log(alpha) + (alpha - 1) * log_rest
    return float(np.trapezoid(density * (log_q - log_p), t))


def test_the_integral_that_serves_as_oracle_agrees_with_scipy() -> None:
    from scipy.integrate import quad
    from scipy.stats import beta

    a, b, alpha = 2.0, 3.0, 4.0

    def integrand(v: float) -> float:
        q = a * b * v ** (a - 1) * (1 - v**a) ** (b - 1)
        return float(q * (math.log(q) - beta.logpdf(v, 1, alpha)))

    assert integrated_kl(a, b, alpha) == pytest.approx(quad(integrand, 0, 1)[0], abs=1e-8)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_sticks_kl_is_that_of_numerical_integration(dtype: torch.dtype) -> None:
    a, b, alpha = torch.meshgrid(
        *(torch.tensor(row, dtype=dtype) for row in (GRID, GRID, ALPHAS)), indexing="ij"
    )
    found = stick_kl(a, b, alpha)
    true = torch.tensor(
        [[[integrated_kl(*map(float, (x, y, z))) for z in ALPHAS] for y in GRID] for x in GRID]
    )
    # Single precision keeps seven digits of values up to hundreds.
    slack = 1e-3 if dtype == torch.float64 else 1e-3 + 2e-5 * true.abs()
    assert ((found - true).abs() < slack).all(), (found - true).abs().max()


@pytest.mark.parametrize(("a", "b", "alpha", "kl"), [(3, 0.7, 10, 19.18), (2, 0.1, 5, 48.35)])
def test_where_a_truncated_series_is_badly_off(a: float, b: float, alpha: float, kl: float) -> None:
    values = torch.tensor([a, b, alpha], dtype=torch.float64).unbind()
    assert float(stick_kl(*values)) == pytest.approx(kl, abs=0.01)


def test_a_stick_like_its_prior_costs_nothing() -> None:
    alpha = torch.tensor([0.5, 1.0, 7.0], dtype=torch.float64)
    kl = stick_kl(torch.ones_like(alpha), alpha, alpha)  # Kumaraswamy(1, b) is Beta(1, b)
    torch.testing.assert_close(kl, torch.zeros_like(kl), atol=1e-3, rtol=0)


def test_the_expected_kl_under_a_distribution_of_alpha_is_exact() -> None:
    shape, rate = torch.tensor(3.0), torch.tensor(2.0)
    a, b = torch.tensor(1.5), torch.tensor(4.0)
    alpha, log_alpha = gamma_moments(shape, rate)
    torch.manual_seed(0)
    drawn = Gamma(shape, rate).sample((40_000,))
    each = stick_kl(a, b, drawn)
    error = float(each.std() / math.sqrt(len(each)))
    assert abs(float(stick_kl(a, b, alpha, log_alpha) - each.mean())) < 4 * error


@settings(max_examples=30, deadline=None)
@given(*[st.floats(0.05, 50)] * 4)
def test_the_gamma_kl_is_torchs(s: float, r: float, s0: float, r0: float) -> None:
    values = torch.tensor([s, r, s0, r0], dtype=torch.float64).unbind()
    true = kl_divergence(Gamma(*values[:2]), Gamma(*values[2:]))
    torch.testing.assert_close(gamma_kl(*values), true, rtol=1e-6, atol=1e-6)


@settings(max_examples=50, deadline=None)
@given(st.floats(-700, -1e-12))
def test_log1mexp_in_both_regions(x: float) -> None:
    true = math.log(-math.expm1(x)) if x > -0.5 else math.log1p(-math.exp(x))
    assert float(log1mexp(torch.tensor(x, dtype=torch.float64))) == pytest.approx(true, rel=1e-12)


@settings(max_examples=50, deadline=None)
@given(st.floats(0.1, 20), st.floats(0.1, 20), st.floats(1e-7, 1 - 1e-7))
def test_sticks_in_logs_are_finite_and_agree_with_the_plain_formula(
    a: float, b: float, u: float
) -> None:
    parts = [torch.tensor(x, dtype=torch.float32) for x in (math.log(u), a, b)]
    log_u, *shape = wanted(*parts)
    log_v, log_rest = kumaraswamy_logs(log_u, *shape)
    (log_v + log_rest).backward()
    assert all(torch.isfinite(x).all() for x in (log_v, log_rest))
    assert all(torch.isfinite(x.grad).all() for x in (log_u, *shape) if x.grad is not None)
    v = (1 - u ** (1 / b)) ** (1 / a)
    if 1e-3 < v < 1 - 1e-3:
        assert float(log_v.detach()) == pytest.approx(math.log(v), abs=1e-3)
        assert float(log_rest.detach()) == pytest.approx(math.log(1 - v), abs=1e-3)


def test_broken_sticks_make_one_whole() -> None:
    log_u = -doubles(200, 14).abs()
    a, b = (0.1 + doubles(200, 14, seed=seed).abs() for seed in (1, 2))
    pi = stick_breaking(*kumaraswamy_logs(log_u, a, b)).exp()
    assert pi.shape == (200, 15)
    torch.testing.assert_close(pi.sum(-1), torch.ones(200, dtype=torch.float64))
    one = stick_breaking(torch.zeros(3, 0), torch.zeros(3, 0))
    assert one.shape == (3, 1)
    assert (one == 0).all()


def test_the_quadrature_is_the_integral_of_the_stick() -> None:
    ones = torch.ones(3, dtype=torch.float64)
    b = torch.tensor([0.5, 1.0, 4.0], dtype=torch.float64)
    torch.testing.assert_close(expected_log_rest(ones, b), 1 / b, atol=1e-4, rtol=0)


def mixture(k: int, d: int, seed: int, spread: float = 2.0) -> tuple[torch.Tensor, ...]:
    """Posterior's mean and log-variance [d]; mixture's log weights, means, log-variances."""
    return (
        doubles(d, seed=seed),
        doubles(d, seed=seed + 1),
        doubles(k, seed=seed + 2).log_softmax(-1),
        spread * doubles(k, d, seed=seed + 3),
        doubles(k, d, seed=seed + 4),
    )


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 15), st.integers(1, 36), st.floats(0, 5))
def test_the_mixture_kl_never_exceeds_its_variational_bound(
    seed: int, k: int, d: int, spread: float
) -> None:
    torch.manual_seed(seed)
    parts = mixture(k, d, seed, spread)
    ratios, responsibilities = mixture_kl(*parts, samples=2000)
    error = float(ratios.std() / math.sqrt(len(ratios)))
    assert float(ratios.mean()) <= float(mixture_kl_bound(*parts)) + 3 * error + 1e-9
    assert float(ratios.mean()) >= -4 * error - 1e-9  # a KL, up to its sampling error
    torch.testing.assert_close(responsibilities.sum(), torch.ones((), dtype=torch.float64))


def test_with_one_component_the_mixture_kl_is_the_gaussians() -> None:
    torch.manual_seed(0)
    parts = mixture(1, 8, seed=3)
    ratios, _ = mixture_kl(*parts, samples=40_000)
    true = kl_divergence(
        Normal(parts[0], (parts[1] / 2).exp()), Normal(parts[3][0], (parts[4][0] / 2).exp())
    ).sum()
    error = float(ratios.std() / 200)
    assert abs(float(ratios.mean() - true)) < 4 * error
    torch.testing.assert_close(mixture_kl_bound(*parts), true)
    torch.testing.assert_close(gaussian_kl(parts[0], parts[1], parts[3][0], parts[4][0]), true)


def test_estimates_below_zero_are_let_through() -> None:
    same = [torch.zeros(4), torch.zeros(4), torch.zeros(1), torch.zeros(1, 4)]
    torch.manual_seed(0)
    ratios, _ = mixture_kl(*same[:2], same[2], same[3] + 0.1, torch.zeros(1, 4), samples=200)
    assert (ratios < 0).any()


def test_components_far_apart_take_responsibility_each_for_its_own() -> None:
    means = torch.tensor([[-9.0], [0.0], [9.0]])
    joint = mixture_joint(means, torch.full((3,), 1 / 3).log(), means, torch.zeros(3, 1))
    torch.testing.assert_close(joint.softmax(-1), torch.eye(3))
    assert float(entropy(joint.softmax(-1).mean(0)).exp()) == pytest.approx(3, abs=1e-3)


def test_the_entropy_has_a_slope_where_a_weight_is_zero() -> None:
    scores = torch.tensor([0.0, -500.0], requires_grad=True)
    value = entropy(scores.softmax(-1))
    value.backward()
    assert float(value.detach()) == pytest.approx(0, abs=1e-30)
    assert scores.grad is not None
    assert torch.isfinite(scores.grad).all()


def test_the_reconstruction_is_a_likelihood_but_for_its_constant() -> None:
    target, predicted, sigma = doubles(2, 3, 4, 4), doubles(2, 3, 4, 4, seed=1), 0.3
    true = -Normal(predicted, sigma).log_prob(target).sum((-3, -2, -1))
    constant = 48 * (math.log(sigma) + 0.5 * math.log(2 * math.pi))
    torch.testing.assert_close(reconstruction(predicted, target, sigma) + constant, true)


def test_gram_is_blind_to_length_and_to_rotations_of_the_channels() -> None:
    features = doubles(2, 9, 6)
    turn = torch.linalg.qr(doubles(6, 6, seed=1)).Q
    assert float(gram_loss(3 * features @ turn, features)) < 1e-12
    assert float(gram_loss(features.flip(1), features)) > 1e-3


def test_the_teacher_gets_no_gradient() -> None:
    student, teacher = wanted(doubles(1, 4, 3), doubles(1, 4, 3, seed=1))
    gram_loss(student, teacher).backward()
    assert student.grad is not None
    assert teacher.grad is None


POSITIVE = 0.3 + doubles(4, seed=5).abs()
NOISE = doubles(3, 2, 5, seed=6)


def _mixture_mean(*parts: torch.Tensor) -> torch.Tensor:
    return mixture_kl(*parts, noise=NOISE)[0].mean()


@pytest.mark.parametrize(
    ("function", "inputs"),
    [
        (stick_kl, (POSITIVE, POSITIVE + 0.4, POSITIVE.flip(0), POSITIVE.log())),
        (stick_kl, (0.1 + 0 * POSITIVE, POSITIVE / 3, POSITIVE)),
        (gamma_kl, (POSITIVE, POSITIVE + 1, POSITIVE.flip(0), POSITIVE + 0.2)),
        (kumaraswamy_logs, (-POSITIVE, POSITIVE + 0.1, POSITIVE.flip(0))),
        (kumaraswamy_logs, (-30 * POSITIVE, POSITIVE + 0.1, POSITIVE.flip(0))),
        (stick_breaking, (-doubles(3, 4).abs(), -doubles(3, 4, seed=1).abs())),
        (gaussian_log_prob, (doubles(3, 4), doubles(3, 4, seed=1), doubles(3, 4, seed=2))),
        (gaussian_kl, tuple(doubles(3, 4, seed=seed) for seed in range(4))),
        (mixture_kl_bound, mixture(4, 5, seed=0)),
        (
            _mixture_mean,
            (
                doubles(2, 5),
                doubles(2, 5, seed=1),
                doubles(2, 3, seed=2).log_softmax(-1),
                doubles(2, 3, 5, seed=3),
                doubles(2, 3, 5, seed=4),
            ),
        ),
        (entropy, (doubles(3, 4).softmax(-1),)),
        (lambda x, y: reconstruction(x, y, 0.5), (doubles(2, 3, 2, 2), doubles(2, 3, 2, 2))),
        (lambda x: gram_loss(x, doubles(2, 4, 3, seed=9)), (doubles(2, 4, 3),)),
    ],
)
def test_gradients_are_those_of_finite_differences(
    function: Any, inputs: tuple[torch.Tensor, ...]
) -> None:
    assert gradcheck(function, wanted(*inputs))

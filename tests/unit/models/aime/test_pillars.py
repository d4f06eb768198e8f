"""The pillars, each against its oracle."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tinyaime import sequences, tiny

from iwm.models.aime.attention import over_positions
from iwm.models.aime.config import AIMEConfig
from iwm.models.aime.dynamics import Recurrence, shifted
from iwm.models.aime.prior import LOG_VARIANCE, STICK, DPGMMPrior, bounded, log_variance
from iwm.objectives.elbo import gaussian_kl


def begin(batch: int, length: int) -> torch.Tensor:
    starts = torch.zeros(batch, length, dtype=torch.bool)
    starts[:, 0] = True
    return starts


# -- 1: perceiver -------------------------------------------------------------------------


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("t", [0, 2, 4])
@torch.no_grad()
def test_the_context_is_causal_bit_for_bit(t: int, training: bool) -> None:
    observations, _ = sequences()
    changed = observations.clone()
    changed[:, t + 1 :] = 7 * torch.rand_like(changed[:, t + 1 :]) - 3
    found = [
        tiny().train(training).perceiver(frames, begin(2, 6)) for frames in (observations, changed)
    ]
    for name in ("context", "codes", "frames"):
        one, other = (getattr(seen, name) for seen in found)
        assert torch.equal(one[:, : t + 1], other[:, : t + 1]), name
        assert not torch.equal(one[:, t + 1 :], other[:, t + 1 :]), name
    assert torch.equal(found[0].next_logits[:, : t + 1], found[1].next_logits[:, : t + 1])


@torch.no_grad()
def test_the_whole_model_is_causal_bit_for_bit() -> None:
    model = tiny().eval()
    observations, actions = sequences()
    t = 2
    frames, moves = observations.clone(), actions.clone()
    frames[:, t + 1 :] = 1 - frames[:, t + 1 :]
    moves[:, t + 1 :] = 0
    found = []
    for inputs in ((observations, actions), (frames, moves)):
        torch.manual_seed(5)
        found.append(model.forward_sequence(*inputs))
    one, other = found
    for name in ("reconstructions", "z_mean", "z_posterior", "h_t", "attention_maps"):
        assert torch.equal(one[name][:, : t + 1], other[name][:, : t + 1]), name
        assert not torch.equal(one[name][:, t + 1 :], other[name][:, t + 1 :]), name
    # The prior at t + 1, and the attention predicted for it, know nothing of frame t + 1.
    for name in ("mu_k", "sigma_k", "pi", "stick_a", "z_prior", "log_attention_predicted"):
        assert torch.equal(one[name][:, : t + 2], other[name][:, : t + 2]), name


@torch.no_grad()
def test_the_context_does_not_look_into_another_episode() -> None:
    model = tiny().eval()
    observations, _ = sequences()
    starts = begin(2, 6)
    starts[:, 3] = True
    other = observations.clone()
    other[:, :3] = 0
    one, two = (model.perceiver(frames, starts).context for frames in (observations, other))
    assert torch.equal(one[:, 3:], two[:, 3:])
    alone = model.perceiver(observations[:, 3:], begin(2, 3)).context
    torch.testing.assert_close(one[:, 3:], alone)


@torch.no_grad()
def test_the_context_reaches_back_as_far_as_it_is_told() -> None:
    model = tiny(perceiver_config={"reach": 2, "temporal_layers": 1, "width": 16}).eval()
    observations, _ = sequences()
    other = observations.clone()
    other[:, 0] = 0
    one, two = (model.perceiver(frames, begin(2, 6)).context for frames in (observations, other))
    assert not torch.equal(one[:, 1], two[:, 1])
    assert torch.equal(one[:, 2:], two[:, 2:])


def test_codes_follow_the_tokens_and_dead_ones_come_back() -> None:
    model = tiny()
    codebook = model.perceiver.tokenizer.quantiser.codebook.clone()
    observations, _ = sequences(4)
    with torch.no_grad():
        for _ in range(3):
            model.perceiver(observations, begin(4, 6))
    assert (model.perceiver.tokenizer.quantiser.codebook != codebook).any(dim=1).all()


# -- 2: prior -----------------------------------------------------------------------------


def test_the_prior_keeps_its_bounds_wherever_the_network_goes() -> None:
    model = tiny()
    mixture = model.prior(1e3 * torch.randn(40, 16), 1e3 * torch.randn(40, 16))
    torch.testing.assert_close(mixture.log_pi.exp().sum(-1), torch.ones(40))
    assert mixture.log_pi.shape == (40, 5)
    assert mixture.mean.shape == mixture.log_variance.shape == (40, 5, 4)
    assert mixture.stick_a.shape == (40, 4)
    for value in (mixture.stick_a, mixture.stick_b):
        assert STICK[0] - 1e-5 <= value.min() <= value.max() <= STICK[1] + 1e-3
    assert LOG_VARIANCE[0] <= mixture.log_variance.min()
    assert mixture.log_variance.max() <= LOG_VARIANCE[1]
    assert (mixture.alpha_shape > 0).all()
    assert (mixture.alpha_rate > 0).all()
    assert all(value > 0 for value in model.prior.hyperprior)


@settings(max_examples=30, deadline=None)
@given(st.floats(-1e4, 1e4))
def test_log_variances_are_bounded_with_a_slope(x: float) -> None:
    assert float(log_variance(torch.tensor(0.0))) == pytest.approx(0, abs=1e-5)
    low, high = LOG_VARIANCE
    assert low <= float(log_variance(torch.tensor(x))) <= high
    if abs(x) < 10:
        inside = torch.tensor(x, requires_grad=True)
        bounded(inside, low, high).backward()
        assert inside.grad is not None
        assert inside.grad > 0


def test_sticks_start_near_their_prior() -> None:
    mixture = tiny().prior(torch.zeros(1, 16), torch.zeros(1, 16))
    assert 0.5 < float(mixture.stick_a.mean().detach()) < 2
    assert 1.5 < float(mixture.stick_b.mean().detach()) < 6


def test_draws_of_the_prior() -> None:
    model = tiny()
    hidden, context = torch.randn(1, 16), torch.randn(1, 16)
    mixture = model.prior(hidden, context, "mean")
    again = model.prior(hidden, context, "mean")
    assert torch.equal(mixture.log_pi, again.log_pi)  # sticks at their means are not drawn
    torch.testing.assert_close(mixture.log_pi.exp().sum(-1), torch.ones(1))
    assert torch.equal(mixture.draw("mode"), mixture.mean[:, mixture.log_pi.argmax()])
    many = model.prior(hidden.expand(20_000, -1), context.expand(20_000, -1))
    torch.manual_seed(0)
    mean = many.draw("sample").mean(0)
    expected = mixture.draw("mean")[0]
    assert (mean - expected).abs().max() < 0.15
    # The weights drawn from sticks have the sticks' means: v_k are independent.
    torch.testing.assert_close(
        many.log_pi.exp().mean(0), mixture.log_pi.exp()[0], atol=0.02, rtol=0
    )


def test_a_single_gaussian_is_a_mixture_of_one() -> None:
    model = tiny(max_components=1)
    observations, actions = sequences()
    losses, outputs = model.compute_total_loss(observations, actions)
    assert outputs["pi"].shape == (2, 6, 1)
    assert outputs["stick_a"].shape == (2, 6, 0)
    assert (outputs["pi"] == 1).all()
    assert losses["kl_sticks"] == losses["kl_alpha"] == losses["entropy"] == 0


def test_whatever_the_prior_the_rest_starts_alike() -> None:
    """So a mixture and a single Gaussian can be compared in pairs."""
    one, other = tiny().state_dict(), tiny(max_components=1).state_dict()
    assert all(torch.equal(one[name], value) for name, value in other.items())
    assert {name.split(".")[1] for name in one.keys() - other.keys()} == {"sticks", "own"}


def test_components_start_apart_but_within_reach_of_each_other() -> None:
    """Far ones would never win a frame, and what they are to learn goes by the frames won."""
    torch.manual_seed(0)
    prior = DPGMMPrior(AIMEConfig())
    mixture = prior(torch.randn(64, 512), torch.randn(64, 256))
    both = (mixture.mean.detach(), mixture.log_variance.detach())
    first, rest = ([x[:, :1] for x in both], [x[:, 1:] for x in both])
    apart = gaussian_kl(*rest, *first)
    assert float(apart.min()) > 0.1
    assert float(apart.max()) < 10
    # What all share moves with the state far more than what a component adds.
    common = both[0].mean(1)
    own = (both[0] - common.unsqueeze(1)).std(0).mean()
    assert float(own) < 0.5 * float(common.std(0).mean())


# -- 3: dynamics --------------------------------------------------------------------------


def test_each_gate_is_orthogonal_and_the_forget_gate_is_open() -> None:
    recurrence = Recurrence(AIMEConfig())
    weight, hidden = recurrence.lstm.weight_hh_l0, 512
    for gate in weight.split(hidden):
        torch.testing.assert_close(gate @ gate.T, torch.eye(hidden), atol=1e-4, rtol=0)
    stacked = weight.T @ weight
    assert not torch.allclose(stacked, torch.eye(hidden), atol=0.5)  # four turns, not one
    bias = (recurrence.lstm.bias_ih_l0 + recurrence.lstm.bias_hh_l0).view(4, hidden)
    assert (bias[1] == 1).all()
    assert (bias[[0, 2, 3]] == 0).all()
    assert recurrence.input_dim == 298


def test_an_action_is_heard_beside_hundreds_of_other_inputs() -> None:
    recurrence = tiny().recurrence
    rows = recurrence.lstm.weight_ih_l0.detach()
    action, rest = rows[:, -3:].square().sum(0), rows[:, :-3].square().sum()
    assert (action > 0.5 * rest).all()
    assert (action < 2 * rest).all()


@torch.no_grad()
def test_the_state_starts_anew_where_an_episode_begins() -> None:
    recurrence = tiny().recurrence
    torch.nn.init.normal_(recurrence.start_hidden)
    torch.nn.init.normal_(recurrence.start_cell)
    inputs = torch.randn(2, 7, recurrence.input_dim)
    starts = begin(2, 7)
    starts[0, 3] = True
    before, after, cell = recurrence(inputs, starts)
    pieces = [recurrence(inputs[:1, :3], begin(1, 3)), recurrence(inputs[:1, 3:], begin(1, 4))]
    torch.testing.assert_close(after[:1], torch.cat([piece[1] for piece in pieces], dim=1))
    torch.testing.assert_close(before[:1], torch.cat([piece[0] for piece in pieces], dim=1))
    torch.testing.assert_close(before[0, 3], recurrence.start_hidden[-1])
    whole = recurrence(inputs[1:], begin(1, 7))
    torch.testing.assert_close(after[1:], whole[1])
    torch.testing.assert_close(cell[1][:, 1:], whole[2][1])
    torch.testing.assert_close(whole[0][:, 1:], whole[1][:, :-1])


@torch.no_grad()
def test_one_call_over_time_is_many_steps() -> None:
    recurrence = tiny(n_lstm_layers=2).recurrence
    inputs = torch.randn(3, 5, recurrence.input_dim)
    _, after, _ = recurrence(inputs, begin(3, 5))
    cell = recurrence.start(3)
    for t in range(5):
        hidden, cell = recurrence.step(inputs[:, t], cell)
        torch.testing.assert_close(hidden, after[:, t])


def test_what_is_shifted_is_fresh_at_every_start() -> None:
    values = torch.arange(6.0).view(1, 6, 1)
    starts = begin(1, 6)
    starts[0, 4] = True
    assert shifted(values, torch.tensor([-1.0]), starts).flatten().tolist() == [-1, 0, 1, 2, -1, 4]


# -- 4: attention -------------------------------------------------------------------------


def test_a_perfect_mask_keeps_its_mass() -> None:
    cells, inside = 441, 20
    shares = torch.zeros(cells, 2)
    shares[:inside, 0] = 1
    shares[inside:, 1] = 1
    maps = over_positions(shares)
    assert float(maps[0, :inside].sum()) > 0.99999
    assert float(maps[1, inside:].sum()) > 0.99999
    flattened = shares[:, 0].softmax(0)  # what a second softmax makes of it
    assert float(flattened[:inside].sum()) == pytest.approx(0.11, abs=0.005)


def test_attention_maps_are_distributions_over_positions() -> None:
    model = tiny()
    outputs = model.forward_sequence(*sequences())
    ones = torch.ones(2, 6, 3)
    for maps in (
        outputs["attention_maps"],
        outputs["attention_before"],
        outputs["log_attention_bottom_up"].exp(),
        outputs["log_attention_predicted"].exp(),
    ):
        assert (maps >= 0).all()
        torch.testing.assert_close(maps.sum((-2, -1)), ones)


def test_attention_finds_a_spot() -> None:
    """A slot that is tuned to a feature looks where the feature is."""
    model = tiny()
    slots = model.attention.slots
    with torch.no_grad():
        features = torch.zeros(1, 16, slots.norm_inputs.normalized_shape[0])
        features[0, 5] = 3 * torch.randn(features.shape[-1])
        _, before = slots(features, torch.zeros(1, 16))
        key = slots.k(slots.norm_inputs(features + slots.position))[0, 5]
        slots.q.weight.zero_()
        slots.iterations = 1
        slots.start[0] = torch.ones(8).cumsum(0)
        slots.start[1:] = -slots.start[0]
        row = slots.norm_slots(slots.start[0])
        slots.q.weight.copy_(2 * torch.outer(key, row) / row.norm() ** 2)
        _, maps = slots(features, torch.zeros(1, 16))
    assert before.shape == maps.shape == (1, 3, 16)
    assert maps[0, 0].argmax() == 5
    assert maps[0, 1].argmin() == 5


@torch.no_grad()
def test_predicted_attention_in_imagination_is_that_of_the_sequence() -> None:
    model = tiny().eval()
    attention = model.attention
    hidden, z = torch.randn(2, 6, 16), torch.randn(2, 6, 4)
    features = torch.randn(2, 6, 16, 16)
    attended = attention(features, hidden, z, begin(2, 6))
    step = attention.step(attended.maps[:, 2], hidden[:, 3], z[:, 2])
    torch.testing.assert_close(step, attended.log_predicted[:, 3].exp(), atol=1e-5, rtol=1e-4)
    assert math.isclose(float(step[0, 0].sum()), 1, rel_tol=1e-5)


# -- encoder and decoder ------------------------------------------------------------------


@torch.no_grad()
def test_a_signal_keeps_its_size_at_the_start() -> None:
    model = tiny(encoder_config={"base_channels": 32}, decoder_config={"base_channels": 32})
    features = model.encoder.features(torch.rand(8, 3, 32, 32))
    assert 0.1 < float(features.std()) < 3
    _, start, _ = model.encoder(torch.rand(8, 3, 32, 32), torch.zeros(8, 16))
    assert float(start.mean()) == pytest.approx(-3, abs=1)
    even = torch.full((8, 3, 4, 4), 1 / 16)
    frames = model.decoder(torch.randn(8, 4), even)
    assert 0.01 < float(frames.std()) < 0.3  # nearly grey, and z is seen in it
    assert float(frames.mean()) == pytest.approx(0.5, abs=0.1)

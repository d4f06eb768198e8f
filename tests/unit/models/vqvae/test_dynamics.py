from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tinyvqvae import SIZE, TOKENIZER, VOCABULARY, frames, tiny_dynamics, tiny_tokenizer, windows

from iwm.errors import ConfigError, ModelError
from iwm.models.registry import load_model
from iwm.models.transfer import start_from
from iwm.models.vqvae.dream import dream_uncached
from iwm.models.vqvae.dynamics import TokenDynamics
from iwm.models.vqvae.move import carry, settle


def tokens_and_actions(
    model: TokenDynamics, length: int = 6, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Code vectors [2, T, d, h, w] of random tokens, and rows of the action table."""
    generator = torch.Generator().manual_seed(seed)
    shape = (2 * length, *model.tokenizer.grid)
    tokens = torch.randint(model.tokenizer.codebook_size, shape, generator=generator)
    vectors = model.tokenizer.vectors(tokens)
    actions = torch.randint(len(VOCABULARY), (2, length), generator=generator)
    return vectors.reshape(2, length, *vectors.shape[1:]), actions


@pytest.mark.parametrize("place", [1, 3, 5])
def test_later_frames_and_actions_change_no_bit_of_earlier_predictions(place: int) -> None:
    model = tiny_dynamics()
    vectors, actions = tokens_and_actions(model)
    before = model.logits(vectors, actions)
    other, others = vectors.clone(), actions.clone()
    other[:, place:] = tokens_and_actions(model, seed=1)[0][:, place:]
    others[:, place:] = (others[:, place:] + 1) % len(VOCABULARY)
    after = model.logits(other, others)
    assert torch.equal(after[:, :place], before[:, :place])
    assert not torch.equal(after[:, place], before[:, place])


def test_predictions_look_back_on_frames_and_their_actions() -> None:
    model = tiny_dynamics()
    vectors, actions = tokens_and_actions(model)
    before = model.logits(vectors, actions)[:, -1]
    for back in (1, 2):
        others = actions.clone()
        others[:, -1 - back] = (others[:, -1 - back] + 1) % len(VOCABULARY)
        assert not torch.equal(model.logits(vectors, others)[:, -1], before)


def test_positions_see_each_other() -> None:
    model = tiny_dynamics()
    vectors, actions = tokens_and_actions(model, 1)
    other = vectors.clone()
    other[..., 0, 0] += 1
    changed = model.logits(other, actions) - model.logits(vectors, actions)
    assert (changed[:, 0, -1, -1].abs() > 0).any()


def test_the_cached_dream_is_the_uncached_one() -> None:
    model = tiny_dynamics()
    past, now = torch.tensor([[0, 1], [2, -1]]), torch.tensor([[1, 1, 2, 0], [0, 2, 2, -1]])
    cached = model.dream(frames(2, 3), past, now)
    plain = dream_uncached(model, frames(2, 3), past, now)
    assert cached.shape == (2, 4, SIZE, SIZE, 3)
    assert (cached.int() - plain.int()).abs().max() <= 1  # float sums in another order
    assert (cached.int() - plain.int()).abs().float().mean() < 0.01


def test_features_of_parts_are_those_of_the_whole() -> None:
    model = tiny_dynamics()
    vectors, actions = tokens_and_actions(model)
    whole = model.features(vectors, actions)[0].reshape(2, 6, -1)
    first, past = model.features(vectors[:, :2], actions[:, :2])
    second, past = model.features(vectors[:, 2:3], actions[:, 2:3], past)
    third, past = model.features(vectors[:, 3:], actions[:, 3:], past)
    parts = [part.reshape(2, -1, whole.shape[-1]) for part in (first, second, third)]
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-5, rtol=1e-5)
    kept = [pair[0].shape[3] for pair in past.pairs if pair[0].ndim == 5]
    assert kept == [model.context - 1] * 2


def test_a_dream_goes_on_step_by_step() -> None:
    model = tiny_dynamics()
    past, now = torch.tensor([[0, 1]]), torch.tensor([[1, 2, 0]])
    dream = model.start(frames(1, 3), past)
    assert dream.tokens is None
    steps = [dream.step(action) for action in now.unbind(1)]
    assert torch.equal(torch.stack(steps, 1), model.dream(frames(1, 3), past, now))
    assert dream.tokens is not None
    assert tuple(dream.tokens.shape) == (1, *model.tokenizer.grid)


def test_what_stands_still_stays_as_it_was_seen() -> None:
    """Fresh dynamics copy, and carry along what the tokens did not say."""
    model = TokenDynamics(tiny_dynamics().config).eval()
    shown = frames(2, 1)
    unsaid = (model.tokenizer.reconstruct(shown[:, 0]).float() - shown[:, 0]).abs().mean()
    none = torch.empty(2, 0, dtype=torch.int64)
    told = model.dream(shown, none, torch.tensor([[0, 1, 2]] * 2))
    assert (told.float() - shown).abs().mean() < 0.3 * unsaid


def test_things_are_carried_from_where_the_shares_say() -> None:
    things = torch.arange(2 * 3 * 4, dtype=torch.float32).view(1, 2, 3, 4)
    shares = torch.zeros(1, 9, 3, 4)
    shares[:, 5] = 1.0  # from the right; beyond the edge as at the edge
    moved = carry(things, shares, (1, 1))
    assert torch.equal(moved[..., :-1], things[..., 1:])
    assert torch.equal(moved[..., -1], things[..., -1])
    shares = torch.zeros(1, 9, 3, 4)
    shares[:, 1], shares[:, 4] = 0.25, 0.75  # a quarter from above
    assert torch.equal(
        carry(things, shares, (1, 1))[:, :, 1], 0.25 * things[:, :, 0] + 0.75 * things[:, :, 1]
    )


def test_what_is_more_likely_than_not_is_taken_for_certain() -> None:
    shares = torch.tensor([[0.6, 0.3, 0.1], [0.5, 0.3, 0.2]])
    assert torch.equal(settle(shares, 1), torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.3, 0.2]]))


def test_where_tokens_come_from_may_be_told() -> None:
    model = tiny_dynamics()
    rows, columns = model.tokenizer.grid
    down, across = model.config.reach
    tokens = torch.randint(model.tokenizer.codebook_size, (2, rows, columns))
    present = model.tokenizer.vectors(tokens)
    choices = torch.zeros(2, (2 * down + 1) * (2 * across + 1), rows, columns)
    choices[:, down * (2 * across + 1) + across + 1] = 9.0  # all from the right
    features = torch.randn(2, model.config.detail, rows, columns)
    copied = model.tell(features, present, choices)[1].copied
    assert torch.equal(copied[..., :-1], present[..., 1:])


def test_drawn_dreams_depend_on_their_seed_alone() -> None:
    model = tiny_dynamics()
    past, now = torch.tensor([[0]]), torch.tensor([[1, 2, 0]])
    one, same, other = (
        model.dream(frames(1, 2), past, now, seed=seed, temperature=1.0) for seed in (3, 3, 4)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    cold = [model.dream(frames(1, 2), past, now, seed=seed, temperature=1e-4) for seed in (3, 4)]
    assert torch.equal(*cold)


def test_an_unknown_action_is_no_guide() -> None:
    """Guidance is away from it: what comes is what is told, drawn."""
    model = tiny_dynamics()
    dream = model.start(frames(2, 2), torch.tensor([[0], [1]]), temperature=1e-4)
    vectors, past = dream.vectors, dream._past
    dream.step(torch.tensor([-1, 2]))
    known = model.known(torch.tensor([-1, 2])).unsqueeze(1)
    features = model.features(vectors.unsqueeze(1), known, past)[0]
    logits = model.tell(features, vectors, 1e4 * model.move.choose(features))[0]
    assert dream.tokens is not None
    same = dream.tokens.eq(model.likeliest(logits))
    assert same[0].all()
    assert not same[1].all()


def test_actions_lead_to_other_frames() -> None:
    model = tiny_dynamics()
    none = torch.empty(3, 0, dtype=torch.int64)
    told = model.dream(frames(1, 1).expand(3, -1, -1, -1, -1), none, torch.tensor([[0], [1], [-1]]))
    assert not torch.equal(told[0], told[1])
    assert not torch.equal(told[0], told[2])


def test_next_tokens_are_the_likeliest() -> None:
    model = tiny_dynamics()
    tokens = torch.randint(model.tokenizer.codebook_size, (2, 3, *model.tokenizer.grid))
    actions = torch.tensor([[0, 1, 2], [2, 1, 0]])
    told = model.next_tokens(tokens, actions)
    assert told.shape == tokens.shape
    whole = model.tokenizer.vectors(tokens.flatten(0, 1))
    logits = model.logits(whole.reshape(2, 3, *whole.shape[1:]), actions)
    best = [part.argmax(-1) for part in model.digits(logits)]
    assert torch.equal(model.tokenizer.quantiser.split(told), torch.stack(best, -1))


@pytest.mark.parametrize(
    ("quantiser"),
    [{"kind": "ema", "codes": 16, "dim": 4}, {"kind": "lfq", "codes": 16}],
    ids=lambda quantiser: quantiser["kind"],
)
def test_every_quantiser_dreams_and_trains(quantiser: dict[str, Any]) -> None:
    model = tiny_dynamics(tokenizer={**TOKENIZER, "quantiser": quantiser})
    model.dream(frames(1, 1), torch.empty(1, 0, dtype=torch.int64), torch.tensor([[1, 2]]))
    loss, _ = model.train()(windows())
    loss.backward()
    assert torch.isfinite(loss)


def test_training_learns_and_leaves_the_tokenizer_alone() -> None:
    model = tiny_dynamics().train()
    assert not model.tokenizer.training
    before = {name: value.clone() for name, value in model.tokenizer.state_dict().items()}
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.Adam(trained, 3e-3)
    losses = []
    for step in range(40):
        model.before_step(step)
        loss, logs = model(windows(4, 5))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        model.after_step((step + 1) / 40)
        losses.append(float(loss))
    assert losses[-1] < 0.7 * losses[0]
    assert {"loss_tokens", "token_accuracy", "copy_accuracy"} <= set(logs)
    after = model.tokenizer.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_the_share_of_own_predictions_grows() -> None:
    model = tiny_dynamics(own_share=0.5).train()
    batch = windows(4, 5)

    def losses(progress: float) -> list[float]:
        found = []
        for seed in range(6):
            model.before_step(seed)
            model.after_step(progress)
            found.append(float(model(batch)[0]))
        return found

    early, late = losses(0.0), losses(1.0)
    changed = [one != other for one, other in zip(early, late, strict=True)]
    assert any(changed)
    assert not all(changed), "in some steps only"
    assert losses(1.0) == late, "drawn from the step's seed"


def test_windows_of_one_frame_are_refused() -> None:
    with pytest.raises(ModelError, match="at least two frames"):
        tiny_dynamics()(windows(2, 1))


def test_saved_and_loaded_it_is_the_same(tmp_path: Path) -> None:
    model = tiny_dynamics()
    model.save_pretrained(tmp_path)
    assert (tmp_path / "tokenizer" / "model.safetensors").is_file()
    other = load_model(tmp_path)
    assert isinstance(other, TokenDynamics)
    assert (other.vocabulary, other.context, other.training) == (VOCABULARY, 3, False)
    past, now = torch.tensor([[0, 1]]), torch.tensor([[1, 2, 0]])
    assert torch.equal(other.dream(frames(1, 3), past, now), model.dream(frames(1, 3), past, now))


def test_a_tokenizer_of_another_codebook_is_refused(tmp_path: Path) -> None:
    tiny_dynamics().save_pretrained(tmp_path)
    tiny_tokenizer(quantiser={"levels": [5, 5, 5, 5]}).save_pretrained(tmp_path / "tokenizer")
    with pytest.raises(ModelError, match="codebook of 625, the dynamics were made for 1000"):
        load_model(tmp_path)
    tiny_tokenizer(stem=4).save_pretrained(tmp_path / "tokenizer")
    with pytest.raises(ModelError, match=r"grid of \[8, 8\]"):
        load_model(tmp_path)


def test_training_starts_from_the_tokenizer_of_another_phase(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(seed=5)
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    model = tiny_dynamics()
    start_from(model, tmp_path / "tokenizer")
    picture = frames(1, 1)[:, 0]
    assert torch.equal(model.tokenizer.reconstruct(picture), tokenizer.reconstruct(picture))
    tiny_tokenizer(quantiser={"levels": [5, 4, 5, 5]}).save_pretrained(tmp_path / "other")
    with pytest.raises(ModelError, match="codebook of 500"):
        start_from(model, tmp_path / "other")


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda m: m.start(frames(1, 2)[:, 0], torch.tensor([[0]])), "starts from"),
        (lambda m: m.start(frames(1, 2), torch.tensor([[0, 1]])), "2 frames have"),
        (lambda m: m.start(frames(1, 2), torch.tensor([[3]])), "outside the model's vocabulary"),
        (lambda m: m.start(frames(1, 2), torch.tensor([[0]]), temperature=-1.0), "below 0"),
        (lambda m: m.start(frames(1, 1)[:, :, :16], torch.empty(1, 0).long()), "takes 32x32"),
        (
            lambda m: m.start(frames(1, 1), torch.empty(1, 0).long()).step(torch.tensor([0, 1])),
            "1 rows",
        ),
        (
            lambda m: m.start(frames(1, 1), torch.empty(1, 0).long()).step(torch.tensor([7])),
            "turn_left",
        ),
    ],
)
def test_what_a_dream_cannot_start_from_or_do(call: Any, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        call(tiny_dynamics())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"group": 3}, "does not divide"),
        ({"heads": 3}, "multiple of model.heads"),
        ({"vocabulary": ["a", "a"]}, "twice"),
        ({"image_size": [64, 64]}, "is not the tokenizer's"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        tiny_dynamics(**settings)

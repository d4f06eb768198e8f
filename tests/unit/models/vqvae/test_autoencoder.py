from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures import write_store
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tinyvqvae import SIZE, frames, tiny_tokenizer, windows

from iwm.data.config import ShardConfig
from iwm.data.loader import Loader
from iwm.data.reader import ShardStore
from iwm.errors import ConfigError, ModelError
from iwm.files import read_json, write_json
from iwm.models.registry import create_model, load_model
from iwm.models.vqvae.autoencoder import VQVAE, Decoder, Encoder
from iwm.models.vqvae.config import QuantiserConfig, VQVAEConfig
from iwm.models.vqvae.quantiser import Quantiser

QUANTISERS: dict[str, dict[str, Any]] = {
    "ema": {"kind": "ema", "codes": 32, "dim": 6},
    "fsq": {"kind": "fsq", "levels": [5, 4, 3]},
    "lfq": {"kind": "lfq", "codes": 64},
}
every_quantiser = pytest.mark.parametrize("kind", QUANTISERS)


@every_quantiser
def test_pictures_to_tokens_and_back(kind: str) -> None:
    model = tiny_tokenizer(quantiser=QUANTISERS[kind])
    pictures = frames(3, 1)[:, 0]
    tokens = model.encode(pictures)
    assert (tokens.shape, tokens.dtype) == ((3, 4, 4), torch.int64)
    assert int(tokens.min()) >= 0
    assert int(tokens.max()) < model.codebook_size == {"ema": 32, "fsq": 60, "lfq": 64}[kind]
    decoded = model.decode(tokens)
    assert (decoded.shape, decoded.dtype) == (pictures.shape, torch.uint8)
    assert torch.equal(decoded, model.reconstruct(pictures))
    assert model.grid == (4, 4)
    assert model.bits_per_image == pytest.approx(16 * torch.tensor(model.codebook_size).log2())


@every_quantiser
def test_tokens_name_the_code_vectors_they_were_made_with(kind: str) -> None:
    model = tiny_tokenizer(quantiser=QUANTISERS[kind])
    vectors, tokens, _ = model.quantiser(model.encoder(model.pixels(frames(3, 1)[:, 0])))
    torch.testing.assert_close(model.vectors(tokens), vectors, atol=1e-5, rtol=1e-5)


@every_quantiser
def test_digits_and_expected_vectors(kind: str) -> None:
    quantiser = Quantiser(QuantiserConfig(**QUANTISERS[kind]))
    tokens = torch.arange(quantiser.codebook_size)
    digits = quantiser.split(tokens)
    assert torch.equal(quantiser.join(digits), tokens)
    sure = [
        torch.nn.functional.one_hot(part, values).float()
        for part, values in zip(digits.unbind(-1), quantiser.digits, strict=True)
    ]
    torch.testing.assert_close(quantiser.expected(sure), quantiser.vectors(tokens))
    even = [
        torch.full_like(part, 1 / values)
        for part, values in zip(sure, quantiser.digits, strict=True)
    ]
    torch.testing.assert_close(
        quantiser.expected(even)[0], quantiser.vectors(tokens).mean(0), atol=1e-6, rtol=1e-5
    )


@every_quantiser
def test_gradients_pass_straight_through(kind: str) -> None:
    quantiser = Quantiser(QuantiserConfig(**{**QUANTISERS[kind], "commitment": 0.0})).train()
    latents = torch.randn(2, quantiser.config.width, 3, 3)
    quantiser(latents)  # the whitening has begun
    latents.requires_grad_()
    quantiser.whiten.copy_(torch.eye(quantiser.config.width))
    quantiser.eval() if kind == "fsq" else None
    vectors = quantiser(latents)[0]
    vectors.sum().backward()
    assert latents.grad is not None
    assert (latents.grad.abs() > 0).all(), "every latent gets a gradient past the rounding"
    if kind == "ema":
        assert torch.equal(latents.grad, torch.ones_like(latents))


def test_codes_that_nobody_uses_begin_anew_at_latents() -> None:
    torch.manual_seed(0)
    quantiser = Quantiser(QuantiserConfig(kind="ema", codes=16, dim=4, decay=0.5)).train()
    latents = 5 + 0.1 * torch.randn(4, 4, 4, 4)  # far from every code
    used = [len(quantiser(latents)[1].unique()) for _ in range(8)]
    assert used[0] == 1
    assert used[-1] > 4
    assert float((quantiser.vectors(torch.arange(16)) - 5).abs().max()) < 1


def test_whitened_latents_use_all_levels_from_the_first_step() -> None:
    quantiser = Quantiser(QuantiserConfig(kind="fsq", levels=(5, 5, 5))).train()
    brightness = torch.randn(8, 1, 8, 8)  # all numbers say nearly the same, and little of it
    latents = 0.02 * (brightness + 0.1 * torch.randn(8, 3, 8, 8))
    tokens = quantiser(latents)[1]
    assert len(tokens.unique()) > 60
    assert torch.equal(quantiser.eval()(latents)[1], tokens)


@every_quantiser
def test_training_lowers_the_error(kind: str) -> None:
    model = tiny_tokenizer(quantiser=QUANTISERS[kind]).train()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    errors = []
    for step in range(30):
        model.before_step(step)
        loss, logs = model(windows(8, 1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        model.after_step((step + 1) / 30)
        errors.append(float(logs["loss_squared"]))
    assert errors[-1] < 0.5 * errors[0]
    assert {"psnr", "codebook_use", "perplexity"} <= set(logs)


@every_quantiser
def test_saved_and_loaded_it_is_the_same(kind: str, tmp_path: Path) -> None:
    model = tiny_tokenizer(quantiser=QUANTISERS[kind]).train()
    model(windows(4, 1))  # its running figures have moved
    model.eval().save_pretrained(tmp_path)
    other = load_model(tmp_path)
    assert isinstance(other, VQVAE)
    assert not other.training
    pictures = frames(3, 1, seed=1)[:, 0]
    assert torch.equal(other.encode(pictures), model.encode(pictures))
    assert torch.equal(other.reconstruct(pictures), model.reconstruct(pictures))


@pytest.mark.parametrize(
    ("kind", "other", "size"),
    [("ema", {"codes": 16}, 32), ("fsq", {"levels": [5, 4, 5]}, 60), ("lfq", {"codes": 32}, 64)],
)
def test_weights_of_another_codebook_are_refused(
    kind: str, other: dict[str, Any], size: int, tmp_path: Path
) -> None:
    tiny_tokenizer(quantiser=QUANTISERS[kind]).save_pretrained(tmp_path)
    config = read_json(tmp_path / "config.json")
    config["settings"]["quantiser"] |= other
    write_json(tmp_path / "config.json", config)
    with pytest.raises(ModelError, match=rf"codebook of {size} .*the config says"):
        load_model(tmp_path)


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    tiny_tokenizer().save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["encoder.linear.bias"]
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=r"has no tensor encoder\.linear\.bias"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("pictures", "words"),
    [
        (torch.zeros(2, 16, 16, 3, dtype=torch.uint8), "16x16 .*takes 32x32"),
        (torch.zeros(2, SIZE, SIZE, 4, dtype=torch.uint8), "takes RGB"),
        (torch.zeros(2, SIZE, SIZE, dtype=torch.uint8), "takes RGB"),
        (torch.zeros(2, SIZE, SIZE, 3), "takes uint8"),
    ],
)
def test_pictures_of_another_size_or_kind_are_refused(pictures: torch.Tensor, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        tiny_tokenizer().encode(pictures)


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        (torch.zeros(2, 5, 4, dtype=torch.int64), r"takes \[B, 4, 4\]"),
        (torch.full((1, 4, 4), 1000), "outside the codebook of 1000"),
        (torch.full((1, 4, 4), -1), "outside the codebook"),
        (torch.zeros(1, 4, 4), "whole numbers"),
    ],
)
def test_tokens_that_mean_nothing_are_refused(tokens: torch.Tensor, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        tiny_tokenizer().decode(tokens)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"image_size": [30, 32]}, "multiple of 8"),
        ({"heads": 3}, "multiple of model.heads"),
        ({"channels": []}, "channels is empty"),
        ({"quantiser": {"kind": "lfq", "codes": 1000}}, "power of two"),
        ({"quantiser": {"levels": []}}, "levels is empty"),
        ({"quantiser": {"kind": "vq"}}, "quantiser.kind"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        tiny_tokenizer(**changes)


@settings(max_examples=12)
@given(
    st.integers(1, 3).map(lambda n: 8 * n),
    st.integers(1, 3).map(lambda n: 8 * n),
    st.sampled_from([(1, [4, 8]), (2, [4, 8]), (4, [8]), (2, [4, 4, 8])]),
)
def test_any_size_of_whole_tokens(height: int, width: int, shape: tuple[int, list[int]]) -> None:
    stem, channels = shape
    model = create_model(
        "vqvae", image_size=[height, width], stem=stem, channels=channels, blocks=1, heads=2
    ).eval()
    assert isinstance(model, VQVAE)
    pictures = torch.randint(0, 256, (2, height, width, 3), dtype=torch.uint8)
    tokens = model.encode(pictures)
    assert (
        tuple(tokens.shape[1:])
        == model.grid
        == (height // model.config.patch, width // model.config.patch)
    )
    assert model.decode(tokens).shape == pictures.shape


def test_the_full_size_is_under_500_million_parameters() -> None:
    config = VQVAEConfig()
    with torch.device("meta"):
        encoder, decoder = Encoder(config), Decoder(config)
    count = sum(weight.numel() for part in (encoder, decoder) for weight in part.parameters())
    assert 20e6 < count < 500e6
    latents = encoder(torch.empty(2, 3, *config.image_size, device="meta"))
    assert tuple(latents.shape) == (2, config.quantiser.width, *config.grid)
    assert tuple(decoder(latents).shape) == (2, 3, *config.image_size)


def test_it_learns_from_the_loader(tmp_path: Path) -> None:
    write_store(tmp_path, ShardConfig(width=SIZE, height=SIZE), episodes=5, steps=6)
    batch = next(Loader(ShardStore(tmp_path), "train", 4, workers=0).epoch(0))
    loss, logs = tiny_tokenizer().train()(batch)
    loss.backward()
    assert torch.isfinite(loss)
    assert 0 < float(logs["codebook_use"]) <= 1

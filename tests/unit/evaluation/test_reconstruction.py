"""Figures of tokenizers: of one that keeps everything, of one that keeps little."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import toydreams
from torch import Tensor

from iwm.evaluation import pixels
from iwm.evaluation.reconstruction import codebook, draw, evaluate


class Lossless(toydreams.Tokenizer):
    """One token a picture: the number of a picture that it has seen."""

    codebook_size = 16
    bits_per_image = 2560.0

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def encode(self, images: Tensor) -> Tensor:
        self.seen += list(images)
        first = len(self.seen) - len(images)
        return torch.arange(first, len(self.seen)).view(-1, 1, 1) % 16

    def decode(self, tokens: Tensor) -> Tensor:
        return torch.stack(self.seen[-len(tokens) :])


def test_a_lossless_tokenizer_beats_jpeg_and_a_coarse_one_does_not(tmp_path: Path) -> None:
    images = toydreams.windows(count=4, frames=6).frames.flatten(0, 1)
    episodes = np.arange(24) // 6
    found = evaluate(Lossless(), images, episodes, resamples=200, timed=3)
    assert found.metrics["reconstruction"]["psnr"]["mean"] == pixels.CEILING_DB
    assert found.metrics["reconstruction"]["ssim"]["mean"] == pytest.approx(1, abs=1e-4)
    assert found.metrics["jpeg"]["gain_psnr"]["low"] > 0
    assert found.metrics["jpeg_stream"]["bytes"]["high"] <= 320
    assert found.metrics["jpeg_stream"]["gain_psnr"]["low"] > 0
    assert found.metrics["codebook"]["use"]["mean"] == 1
    assert found.metrics["cost"]["compression"]["mean"] == 64 * 64 * 24 / 2560
    assert "left out" in found.metrics["notes"]["lpips"]
    coarse = evaluate(toydreams.Tokenizer(), images, episodes, resamples=200, timed=3)
    assert coarse.metrics["jpeg"]["gain_psnr"]["high"] < 0
    draw(found, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "codes.png", "psnr.png", "tokens.png",
    ]  # fmt: skip


def test_codebook_figures_of_known_use() -> None:
    tokens = np.repeat(np.arange(8)[:, None], 5, 1)  # eight pictures, a code each, of sixteen
    figures = codebook(tokens, np.arange(8), 16)
    # Without any one of eight episodes, one code of sixteen less: each estimate is the same.
    assert figures["use"] == {"mean": 0.5, "low": 0.5, "high": 0.5, "n": 8}
    assert figures["perplexity"]["mean"] == pytest.approx(8)
    one = codebook(np.zeros((8, 5), int), np.arange(8), 16)
    assert one["perplexity"] == {"mean": 1.0, "low": 1.0, "high": 1.0, "n": 8}
    single = codebook(tokens, np.zeros(8, int), 16)
    assert single["use"]["low"] == single["use"]["high"] == 0.5


def test_the_interval_of_codebook_use_holds_what_other_episodes_use() -> None:
    rng = np.random.default_rng(0)
    size, episodes, pictures = 400, np.arange(60) // 3, 16
    odds = rng.dirichlet(np.full(size, 0.3))

    def play() -> np.ndarray:
        # Every episode has codes of its own taste, as games do.
        taste = rng.dirichlet(odds * 200 + 1e-3, size=20)
        return np.stack([rng.choice(size, pictures, p=taste[e]) for e in episodes])

    expected = np.mean([codebook(play(), episodes, size)["use"]["mean"] for _ in range(60)])
    held = [codebook(play(), episodes, size)["use"] for _ in range(60)]
    share = np.mean([one["low"] <= expected <= one["high"] for one in held])
    assert share >= 0.85
    assert all(one["low"] <= one["mean"] <= one["high"] for one in held)

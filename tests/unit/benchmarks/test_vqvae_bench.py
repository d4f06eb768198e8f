from __future__ import annotations

from tinyvqvae import tiny_dynamics

from benchmarks.vqvae import MEAN, PLAIN, PLAYED, measure, untrained


def test_every_row_is_measured_in_one_run() -> None:
    rows = {row.what: row for row in measure(tiny_dynamics(), frames=8, repeats=2)}
    assert list(rows) == ["encode 1", "encode 16", "decode 1", "decode 16", MEAN, PLAYED, PLAIN]
    for row in rows.values():
        assert row.milliseconds > 0
        assert row.tokens_per_s == row.frames_per_s * 16
    # 16 passes over four frames against one pass over one.
    assert rows[MEAN].tokens_per_s > rows[PLAIN].tokens_per_s


def test_the_untrained_model_is_the_cpu_profiles() -> None:
    model = untrained()
    assert model.tokenizer.config.image_size == (64, 64)
    assert sum(weight.numel() for weight in model.parameters()) > 100_000

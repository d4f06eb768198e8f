"""Evaluation of an image tokenizer (milestone 1), as the stage `evaluate` calls it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from iwm.config import Params
from iwm.data.reader import ShardStore
from iwm.evaluation.reconstruction import draw, evaluate
from iwm.evaluation.statistics import interval
from pipelines._evaluate_image import frames
from pipelines._trained import load_fitting_model


def measure(
    phase: str, params: Params, store: ShardStore, folder: Path
) -> tuple[dict[str, Any], list[str]]:
    """Figures, and lines for the terminal; pictures go into ``folder``."""
    config = params.evaluate[phase]
    model = load_fitting_model(phase, params, store).eval()
    only = params.train[phase].recordings if phase in params.train else None
    held = frames(store, config.split, config.images, config.seed, only)
    found = evaluate(
        model,
        held.images.permute(0, 2, 3, 1).contiguous(),
        held.episode,
        resamples=config.bootstrap,
        seed=config.seed,
        batch=config.batch_size,
    )
    draw(found, folder)
    quality = found.metrics["reconstruction"]
    other, bare = found.metrics["jpeg"], found.metrics["jpeg_stream"]
    codebook, cost = found.metrics["codebook"], found.metrics["cost"]
    return found.metrics, [
        f"PSNR {interval(quality['psnr'])} dB, SSIM {interval(quality['ssim'])}",
        f"JPEG files in {other['bytes']['mean']:.0f} bytes, tokens in "
        f"{cost['bits_per_image']['mean'] / 8:.0f}: PSNR {interval(other['psnr'])} dB, so "
        f"{interval(other['gain_psnr'])} dB better",
        f"JPEG with its header for nothing: PSNR {interval(bare['psnr'])} dB, so "
        f"{interval(bare['gain_psnr'])} dB better",
        f"codebook: {interval(codebook['use'])} of it in use, "
        f"perplexity {codebook['perplexity']['mean']:.0f} of {model.codebook_size}",
        f"{cost['parameters']['mean']:,.0f} parameters, {interval(cost['ms_per_image'])} ms a "
        f"picture, {cost['compression']['mean']:.1f} times smaller than raw pixels",
        f"LPIPS {found.metrics['notes']['lpips']}",
    ]

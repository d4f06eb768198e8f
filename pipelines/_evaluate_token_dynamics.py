"""Evaluation of token dynamics (milestones 2 to 4), as the stage `evaluate` calls it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from iwm.config import Params
from iwm.data.reader import ShardStore
from iwm.evaluation.dreams import draw, evaluate, frozen_encoder, read
from iwm.evaluation.latents import Encode
from iwm.evaluation.sprites import Staged, stage
from iwm.evaluation.statistics import interval
from iwm.models.registry import load_model
from iwm.training.distributed import choose_device
from pipelines._stage import MODELS
from pipelines._trained import check_fits, load_fitting_model


def measure(
    phase: str, params: Params, store: ShardStore, folder: Path
) -> tuple[dict[str, Any], list[str]]:
    """Figures, and lines for the terminal; pictures go into ``folder``."""
    config = params.evaluate[phase]
    model = load_fitting_model(phase, params, store).eval()
    only = params.train[phase].recordings if phase in params.train else None
    held = read(store, model, config.dream, config.seed, only)
    encode = _encoder(params, store, config.dream.frechet_encoder)
    outcome = evaluate(
        model,
        held,
        config.dream,
        resamples=config.bootstrap,
        seed=config.seed,
        batch=config.batch_size,
        staged=_staged(params, store, model, held.present, phase),
        encode=encode,
    )
    draw(outcome, folder)
    return outcome.metrics, list(_lines(outcome.metrics))


def _encoder(params: Params, store: ShardStore, phase: str | None) -> Encode | None:
    """The frozen encoder of another phase."""
    if phase is None:
        return None
    model = load_model(MODELS / phase)
    check_fits(model, MODELS / phase, store)
    device = params.train[phase].device if phase in params.train else "auto"
    return frozen_encoder(model.eval().to(choose_device(device)))


def _staged(
    params: Params, store: ShardStore, model: Any, present: int, phase: str
) -> Staged | None:
    """Fresh play of the procedural world, where the model has learned from it at this size."""
    config = params.evaluate[phase]
    for plan in params.record.plans:
        known = plan.source == "procedural" and plan.name in store.recordings
        if known and (plan.height, plan.width) == tuple(store.image_shape[:2]):
            return stage(
                plan,
                params.shard,
                model.vocabulary,
                frames=present + 1 + config.dream.steps,
                count=config.dream.staged,
                record_seed=params.record.seed,
                seed=config.seed,
            )
    return None


def _lines(metrics: dict[str, Any]) -> Iterator[str]:
    for name, title in (("all", "next frame"), ("moving", "its moving pixels")):
        if arms := metrics["next_frame"][name]:
            yield (
                f"{title}: {interval(arms['model'])} dB, {interval(arms['gain_copy_last'])} "
                f"above the last frame, {arms['tokenizer']['mean']:.2f} through the tokens alone"
            )
    arms = metrics["next_frame"]["tokens"]
    yield f"tokens told right: {interval(arms['model'])}, copied {interval(arms['copy_last'])}"
    for name, steps in metrics["sequence"].items():
        for step in ("k1", "k5", "k10", "k30"):
            if step in steps:
                yield (
                    f"{name.replace('_', ' ')}, {step}: {interval(steps[step]['model'])} dB, "
                    f"{interval(steps[step]['gain_copy_last'])} above the last frame, "
                    f"{interval(steps[step]['gain_unrelated'])} above an unrelated one"
                )
        yield f"{name.replace('_', ' ')}, drift: {interval(steps['drift']['model'])} dB"
    if frechet := metrics.get("frechet"):
        yield "Frechet distance: " + ", ".join(
            f"{arm.replace('_', ' ')} {figure['mean']:.2f}" for arm, figure in frechet.items()
        )
    for step, arms in metrics["actions"]["delta_psnr"].items():
        if step in ("k1", "k4", "k8"):
            yield f"delta-PSNR at {step}: {interval(arms['delta'])} dB"
    read = metrics["actions"]["inverse"]
    yield "actions read right: " + ", ".join(
        f"{arm.replace('_', ' ')} {interval(figure)}" for arm, figure in read.items()
    )
    if turning := metrics.get("turning"):
        yield "apparent motion, pixels a frame: " + ", ".join(
            f"{arm.replace('_', ' ')} {interval(figure)}" for arm, figure in turning.items()
        )
    for step, found in metrics.get("truth", {}).items():
        for what, arms in found.items():
            yield f"{what} against the truth, {step}: " + ", ".join(
                f"{arm.replace('_', ' ')} {interval(figure)}" for arm, figure in arms.items()
            )

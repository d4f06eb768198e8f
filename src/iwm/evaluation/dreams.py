"""The evaluation of a generative model of play: everything that milestones 2 to 4 ask for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from iwm.data.reader import ShardStore
from iwm.evaluation import controllability, generation
from iwm.evaluation.config import DreamEvaluateConfig
from iwm.evaluation.inverse import train_reader
from iwm.evaluation.latents import Encode
from iwm.evaluation.sequences import Dreamer, Windows, imagine, read_windows
from iwm.evaluation.sprites import Staged, truth_figures
from iwm.models.vqvae.dream import LIVELY
from iwm.progress import Progress

REPORTED = (1, 5, 10, 30)
"""Steps at which a sequence is compared with the truth of the procedural world, and shown."""


@dataclass(frozen=True)
class Held:
    """What is measured on. The windows of held-out play all have their present frame, the last
    that is shown, at ``present``; after it ``single`` holds one frame, ``long`` a whole
    sequence, ``acted`` a short one. ``pairs`` of training play are for the action reader.
    """

    present: int
    single: Windows
    long: Windows
    acted: Windows
    pairs: Windows


@dataclass(frozen=True)
class Outcome:
    """``metrics`` for the report, and what the pictures need: imagined sequences uint8
    [N, K, H, W, 3] by the number of frames shown, and those under random actions.
    """

    metrics: dict[str, Any]
    windows: Windows
    present: int
    sequences: dict[int, Tensor]
    random: Tensor


def read(
    store: ShardStore,
    model: Dreamer,
    config: DreamEvaluateConfig,
    seed: int,
    recordings: Sequence[str] | None,
) -> Held:
    """Held-out windows, of both splits that no model is trained on, and training pairs.

    Raises:
        DataError: no episode is long enough, or an action is not in the model's vocabulary.
    """
    present = max(model.context, config.shown) - 1

    def windows(splits: Sequence[str], frames: int, count: int) -> Windows:
        return read_windows(
            store,
            splits,
            model.vocabulary,
            frames=frames,
            count=count,
            seed=seed,
            recordings=recordings,
        )

    held = ("val", "test")
    return Held(
        present,
        windows(held, present + 2, config.next_windows),
        windows(held, present + 1 + config.steps, config.sequences),
        windows(held, present + 1 + config.action_steps, config.action_windows),
        windows(("train",), 2, config.reader_pairs),
    )


def evaluate(
    model: Dreamer,
    held: Held,
    config: DreamEvaluateConfig,
    *,
    resamples: int,
    seed: int,
    batch: int = 64,
    staged: Staged | None = None,
    encode: Encode | None = None,
) -> Outcome:
    """Measure a model.

    Args:
        model: in eval mode.
        held: see :func:`read`.
        config: how much.
        resamples: of the bootstrap.
        seed: of dreams, random actions, bootstrap.
        batch: windows imagined at once.
        staged: fresh play of the procedural world, the present frame as in ``held``.
        encode: a frozen encoder for the Frechet distance; left out where there is none.
    """
    boot = {"resamples": resamples, "seed": seed}
    present, long, acted = held.present, held.long, held.acted
    options: dict[str, Any] = {"present": present, "batch": batch, "seed": seed}
    deep = {**options, "context": min(model.context, present + 1)}
    metrics: dict[str, Any] = {}
    # What a player sees is drawn, so what it shows of the actions is read there.
    played = {**deep, "temperature": LIVELY}
    arms = 7 + (staged is not None)
    with Progress("imagine held-out play", arms, "arms") as progress:

        def dream(some: Windows, actions: Tensor, **how: Any) -> Tensor:
            frames = imagine(model, some, actions, **how).frames
            progress.advance()
            return frames

        one = held.single.actions[:, present : present + 1]
        following = imagine(model, held.single, one, **deep)
        progress.advance()
        metrics["next_frame"] = generation.next_frame(
            model, held.single, following, present, **boot
        )

        ahead = long.actions[:, present : present + config.steps]
        sequences = {
            shown: dream(long, ahead, **options, context=shown)
            for shown in dict.fromkeys((1, min(config.shown, model.context)))
        }
        metrics["sequence"] = {
            f"context_{shown}": generation.sequence(long, frames, present, **boot)
            for shown, frames in sequences.items()
        }
        if encode is not None:
            named = {f"context_{shown}": frames for shown, frames in sequences.items()}
            metrics["frechet"] = generation.frechet(long, named, present, encode)

        true_actions = acted.actions[:, present:]
        random_actions = acted.random_actions(config.action_steps, seed)
        told = dream(acted, true_actions, **deep)
        random = dream(acted, random_actions, **deep)
        metrics["actions"] = {
            "delta_psnr": controllability.delta_psnr(acted, told, random, present, **boot)
        }
        drawn = dream(acted, true_actions, **played)
        drawn_random = dream(acted, random_actions, **played)
        if staged is not None:
            fresh = staged.windows
            made = dream(fresh, fresh.actions[:, present : present + config.steps], **deep)
            reported = [step for step in REPORTED if step <= config.steps]
            metrics["truth"] = truth_figures(staged, made, present, reported, **boot)
    reader = train_reader(
        held.pairs,
        len(model.vocabulary),
        steps=config.reader_steps,
        device=next(model.parameters()).device,
        seed=seed,
    )
    metrics["actions"]["inverse"] = controllability.agreement(
        reader, acted, drawn, drawn_random, random_actions, present, **boot
    )
    turned = acted.take(slice(config.turn_windows))
    turning = controllability.turning(
        model, turned, present=present, context=deep["context"], temperature=LIVELY, **boot
    )
    if turning:
        metrics["turning"] = turning
    metrics["data"] = {
        "windows": {name: len(getattr(held, name)) for name in ("single", "long", "acted")},
        "episodes": len(np.unique(held.single.episode)),
        "reader_pairs": len(held.pairs),
    }
    return Outcome(metrics, long, present, sequences, random)


def draw(found: Outcome, folder: Path, rows: int = 4) -> None:
    """``dreams.png``: imagined strips beside the true ones; ``actions.png``: the same under
    random actions; ``drift.png``: PSNR over the steps; ``gains.png``: its gain over copying.
    """
    from iwm.evaluation.frame_pictures import beside, curves

    windows, present = found.windows.take(slice(rows)), found.present
    last = windows.frames[:, present]
    true = windows.frames[:, present + 1 :]
    steps = [step for step in (1, 2, 3, 5, 8, 10, 15, 20, 25, 30) if step <= true.shape[1]]
    arms = {f"from {shown}": frames[:rows] for shown, frames in found.sequences.items()}
    beside(last, true, arms, steps, folder / "dreams.png")
    few = range(1, found.random.shape[1] + 1)
    deepest = found.sequences[max(found.sequences)]
    shown = {"as it was": deepest[:rows], "random actions": found.random[:rows]}
    beside(last, true, shown, few, folder / "actions.png")
    panels: dict[str, dict[str, list[Any]]] = {}
    gains: dict[str, dict[str, list[Any]]] = {}
    for name, figures in found.metrics["sequence"].items():
        points = [figures[f"k{step + 1}"] for step in range(true.shape[1])]
        title = name.replace("context_", "frames shown: ")
        panels[title] = {
            arm: [point[arm] for point in points] for arm in ("model", "copy_last", "unrelated")
        }
        gains[title] = {"over the last frame": [point["gain_copy_last"] for point in points]}
    curves(panels, "PSNR, dB", folder / "drift.png")
    curves(gains, "gain, dB", folder / "gains.png")


def frozen_encoder(model: Any) -> Encode:
    """``z_cls`` of an image world model or an action-conditioned one, as features."""
    device = next(model.parameters()).device

    @torch.no_grad()
    def encode(images: Tensor) -> Tensor:
        found: Tensor = model.encode(images.to(device))[0]
        return found.float().cpu()

    return encode

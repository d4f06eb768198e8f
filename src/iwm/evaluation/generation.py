"""What a generative model of play imagines, beside what came: milestones 2 and 3.

Every figure stands beside that of the last frame shown, which in games is a strong guess, and
differences are paired: the same window, the same step.

PSNR over all pixels is that of the windows' pooled squared error. A mean of every picture's own
PSNR would be ruled by moments in which nothing happens: there the last frame is right to the last
bit, its PSNR has no bound, and how well a game is foretold while it plays would not show. That
mean is reported beside it (``by_frame``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from iwm.evaluation import pixels
from iwm.evaluation.frechet import frechet_distances
from iwm.evaluation.latents import Encode
from iwm.evaluation.sequences import Dreamer, Imagined, Windows
from iwm.evaluation.statistics import Figure, bootstrap_mean, constant

Array = np.ndarray[Any, Any]
Figures = dict[str, Any]

DRIFT_SPAN = 10
"""Drift is what PSNR loses from the frames of one such span to those of the next, the last."""


def paired(
    arms: dict[str, Array], episodes: Array, *, against: Sequence[str], **boot: int
) -> dict[str, Figure]:
    """Each arm's mean and the paired differences ``model`` minus others as ``gain_<other>``.

    Args:
        arms: name -> [N] values; where one is NaN (too few pixels), the sample is left out.
        episodes: [N] labels.
        against: the arms that ``model`` is compared with.
        boot: ``resamples`` and ``seed``.
    """
    whole = np.isfinite(np.stack(list(arms.values()))).all(0)
    if not whole.any():
        return {}
    kept = {name: values[whole] for name, values in arms.items()}
    kept |= {f"gain_{name}": kept["model"] - kept[name] for name in against}
    return {name: bootstrap_mean(v, episodes[whole], **boot) for name, v in kept.items()}


def pooled(
    errors: dict[str, Array],
    differences: dict[str, tuple[str, str]],
    episodes: Array,
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Figure]:
    """PSNR of pooled squared errors, in dB, and differences; intervals resample episodes.

    Args:
        errors: arm -> [N] mean squared errors.
        differences: name -> (arm, arm whose PSNR is taken from it).
        episodes: [N] labels.
        resamples: of the bootstrap; all arms share them.
        seed: of the bootstrap.
    """
    _, label = np.unique(episodes, return_inverse=True)
    count = np.bincount(label).astype(np.float64)
    drawn = np.random.default_rng(seed).integers(len(count), size=(resamples, len(count)))
    size = count[drawn].sum(1)
    found = {}
    for arm, values in errors.items():
        total = np.bincount(label, weights=values)
        found[arm] = (
            float(pixels.decibels(values.mean())),
            pixels.decibels(total[drawn].sum(1) / size),
        )
    for name, (one, other) in differences.items():
        found[name] = found[one][0] - found[other][0], found[one][1] - found[other][1]
    figures = {}
    for name, (mean, spread) in found.items():
        low, high = np.quantile(spread, [0.025, 0.975])
        figures[name] = {"mean": mean, "low": float(low), "high": float(high), "n": len(episodes)}
    return figures


def _against(
    errors: dict[str, Array], arms: Sequence[str], episodes: Array, **boot: int
) -> Figures:
    """:func:`pooled` with ``gain_<arm>`` for each of ``arms``; ``by_frame``, the mean of every
    frame's own PSNR.
    """
    gains = {f"gain_{arm}": ("model", arm) for arm in arms}
    own = {arm: pixels.decibels(values) for arm, values in errors.items()}
    return {
        **pooled(errors, gains, episodes, **boot),
        "by_frame": paired(own, episodes, against=arms, **boot),
    }


@torch.no_grad()
def next_frame(
    model: Dreamer, windows: Windows, imagined: Imagined, present: int, **boot: int
) -> Figures:
    """Figures of the first imagined frame.

    Args:
        model: its tokenizer makes tokens of the true frames.
        windows: N of them, which hold frame ``present + 1``.
        imagined: from there on.
        present: the last frame that was shown.
        boot: ``resamples`` and ``seed``.

    Returns:
        ``all`` and ``moving`` pixels, PSNR in dB: ``model``, ``copy_last``, ``copy_tokens`` (the
        last frame through its tokens: where pixels were chosen because they moved, any blur is
        nearer than the last frame itself), the gains over both, and ``tokenizer``, the true
        frame through its tokens, which no prediction in tokens can expect to beat; ``tokens``:
        share of tokens told right: ``model``, ``copy_last`` and their difference;
        ``changed_tokens``: the same among tokens that are not as before.
    """
    last, true = windows.frames[:, present], windows.frames[:, present + 1]
    made = imagined.frames[:, 0]
    before, after = (_tokens(model, frames) for frames in (last, true))
    rebuilt, stale = (
        torch.cat([model.tokenizer.decode(some).cpu() for some in torch.split(tokens, 64)])
        for tokens in (after, before)
    )
    arms = {"model": made, "copy_last": last, "copy_tokens": stale, "tokenizer": rebuilt}
    others = ["copy_last", "copy_tokens"]
    errors = {arm: pixels.squared_error(frames, true) for arm, frames in arms.items()}
    where = pixels.moved(true, last)
    moving = {arm: pixels.psnr(frames, true, where) for arm, frames in arms.items()}
    figures: Figures = {
        "all": _against(errors, others, windows.episode, **boot),
        "moving": paired(moving, windows.episode, against=others, **boot),
    }
    right = (imagined.tokens == after.cpu()).flatten(1).double().numpy()
    kept = (before == after).flatten(1).double().cpu().numpy()
    shares = {"model": right.mean(1), "copy_last": kept.mean(1)}
    figures["tokens"] = paired(shares, windows.episode, against=["copy_last"], **boot)
    changed = np.where(kept.all(1), np.nan, (right * (1 - kept)).sum(1))
    shares = {"model": changed / np.maximum((1 - kept).sum(1), 1)}
    figures["changed_tokens"] = paired(shares, windows.episode, against=[], **boot)
    return figures


def _tokens(model: Dreamer, frames: Tensor) -> Tensor:
    device = next(model.parameters()).device
    return torch.cat([model.tokenizer.encode(some.to(device)) for some in torch.split(frames, 64)])


def sequence(windows: Windows, frames: Tensor, present: int, **boot: int) -> Figures:
    """Figures of imagined sequences, step by step.

    Args:
        windows: N of them, which hold K frames after ``present``.
        frames: what was imagined, uint8 [N, K, H, W, 3].
        present: the last frame that was shown.
        boot: ``resamples`` and ``seed``.

    Returns:
        ``k1`` ... ``kK``: PSNR in dB of ``model``, ``copy_last`` and ``unrelated`` (the frame
        that came at the same step of another window: what a picture of the game is worth that
        has lost the thread), and the paired gains; ``drift``: what the last ten frames' PSNR
        lost against the ten before them, of ``model`` and of ``copy_last``.
    """
    steps = frames.shape[1]
    true = windows.frames[:, present + 1 : present + 1 + steps]
    last = windows.frames[:, present].unsqueeze(1)
    other = _unrelated(windows.episode)
    errors = {
        "model": pixels.squared_error(frames, true),
        "copy_last": pixels.squared_error(last, true),
        "unrelated": pixels.squared_error(true[torch.from_numpy(other)], true),
    }
    figures: Figures = {}
    for step in range(steps):
        here = {name: values[:, step] for name, values in errors.items()}
        figures[f"k{step + 1}"] = _against(
            here, ["copy_last", "unrelated"], windows.episode, **boot
        )
    span = min(DRIFT_SPAN, steps // 2)
    spans = {}
    for name in ("model", "copy_last"):
        spans[f"{name}_before"] = errors[name][:, -2 * span : -span].mean(1)
        spans[f"{name}_last"] = errors[name][:, -span:].mean(1)
    lost = {name: (f"{name}_before", f"{name}_last") for name in ("model", "copy_last")}
    figures["drift"] = pooled(spans, lost, windows.episode, **boot)
    return figures


def _unrelated(episode: Array) -> Array:
    """For each window one of another episode, where there is one: [N] places."""
    order = np.argsort(episode, kind="stable")
    # Half-way round the windows sorted by episode is another episode, but for one that holds
    # more than half of them.
    found = np.empty(len(order), np.int64)
    found[order] = np.roll(order, len(order) // 2)
    return found


def frechet(
    windows: Windows, made: Mapping[str, Tensor], present: int, encode: Encode
) -> dict[str, Figure]:
    """Frechet distances to the true frames: of imagined ones, of the last frame shown
    (``copy_last``), and of the true frames' own halves to each other (``real``: the size of what
    chance alone gives, twice over).

    Args:
        windows: N of them.
        made: what was imagined, by name, uint8 [N, K, H, W, 3] each.
        present: the last frame that was shown.
        encode: a frozen encoder.
    """
    steps = max(frames.shape[1] for frames in made.values())
    true = windows.frames[:, present + 1 : present + 1 + steps]
    last = windows.frames[:, present].unsqueeze(1).expand_as(true)
    sets = {name: frames.flatten(0, 1) for name, frames in made.items()}
    sets["copy_last"] = last.flatten(0, 1)
    found = frechet_distances(sets, true.flatten(0, 1), encode)
    half = torch.from_numpy(np.isin(windows.episode, np.unique(windows.episode)[::2]))
    if half.any() and not half.all():
        one, other = (true[part].flatten(0, 1) for part in (half, ~half))
        found |= frechet_distances({"real": one}, other, encode)
    return {name: constant(value, len(windows) * steps) for name, value in found.items()}

"""Held-out figures of a variational recurrent world model: its bound, its components, its
reconstructions and its open-loop predictions, each beside what it must beat.

Bounds are compared pairwise, window by window, with the same network under a single Gaussian
prior; pictures with the last frame seen. Intervals resample whole episodes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from iwm.data.batch import Batch
from iwm.data.loader import Loader
from iwm.data.reader import ShardStore
from iwm.errors import DataError
from iwm.evaluation.statistics import Figure, bootstrap_mean
from iwm.models.aime import DPGMMVariationalRecurrentAutoencoder
from iwm.objectives.aime import elbo_terms

Array = np.ndarray[Any, Any]

MOVED = 16 / 255
"""A pixel moved when a channel of it changed by more than this since the last frame seen."""
FEWEST = 32
"""Pixels that must have moved for a window to count."""


@dataclass(frozen=True)
class Bounds:
    """Negative ELBO and its terms of each window, in nats a frame, [N] each; the constant of the
    likelihood is left out, so only differences mean something.

    ``responsibilities`` [N, K] are means over a window's frames; ``episodes`` [N] labels.
    """

    total: Array
    terms: dict[str, Array]
    responsibilities: Array
    episodes: Array


def held_out_windows(
    store: ShardStore,
    split: str,
    *,
    window: int,
    count: int,
    batch_size: int,
    recordings: Sequence[str] | None = None,
    vocabulary: Sequence[str] | None = None,
) -> list[Batch]:
    """At most ``count`` windows of a split, spread evenly over its play.

    Args:
        store: the shards.
        split: ``val`` or ``test``.
        window: frames each.
        count: of windows.
        batch_size: windows a batch.
        recordings: only these; all when ``None``.
        vocabulary: names that the actions count in.

    Raises:
        DataError: the split has no such window.
    """
    loader = Loader(
        store,
        split,
        1,
        window=window,
        recordings=recordings,
        vocabulary=vocabulary,
        workers=0,
        shuffle=False,
    )
    chosen = np.linspace(0, len(loader.starts) - 1, min(count, len(loader.starts)))
    starts = loader.starts[np.unique(chosen.round().astype(int))]
    rows = starts[:, None] + np.arange(window)
    return [
        loader.load(rows[first : first + batch_size]) for first in range(0, len(rows), batch_size)
    ]


def episode_labels(batch: Batch) -> Array:
    """One number for each (recording, episode) of the windows: [B]."""
    labels: Array = (batch.recording * 1_000_003 + batch.episode).cpu().numpy()
    return labels


@torch.no_grad()
def held_out_bounds(
    model: DPGMMVariationalRecurrentAutoencoder,
    batches: Iterable[Batch],
    *,
    samples: int = 15,
    draws: int = 2,
    seed: int = 0,
) -> Bounds:
    """The bound, beta 1 and no extra terms, of every window.

    Args:
        model: in eval mode; on the device that the batches are brought to.
        batches: held-out windows.
        samples: of the latents' Monte Carlo KL.
        draws: of latents and sticks, averaged.
        seed: of the draws; the same for models to be compared.
    """
    device = next(model.parameters()).device
    kept: dict[str, list[Tensor]] = {}
    episodes = []
    for number, batch in enumerate(batches):
        episodes.append(episode_labels(batch))
        batch = batch.to(device)
        actions = model.action_vectors(batch.action, batch.action_vector)
        found: list[dict[str, Tensor]] = []
        with torch.random.fork_rng():
            torch.manual_seed(seed + number)
            for _ in range(draws):
                outputs = model.forward_sequence(batch.images, actions, batch.done)
                found.append(elbo_terms(outputs, samples))
        for name in found[0]:
            mean = torch.stack([terms[name].mean(1) for terms in found]).mean(0)
            kept.setdefault(name, []).append(mean.double().cpu())
    terms = {name: torch.cat(parts).numpy() for name, parts in kept.items()}
    responsibilities = terms.pop("responsibilities")
    total = np.sum(list(terms.values()), axis=0)
    return Bounds(total, terms, responsibilities, np.concatenate(episodes))


def compare_bounds(model: Bounds, single: Bounds, *, resamples: int = 1000) -> dict[str, Figure]:
    """``gain``: how much higher the ELBO is than the single Gaussian's, nats a frame, paired.

    Raises:
        DataError: the bounds are of different windows.
    """
    if not np.array_equal(model.episodes, single.episodes):
        raise DataError("bounds of different windows cannot be paired")
    figures = {
        "model": bootstrap_mean(-model.total, model.episodes, resamples=resamples),
        "single": bootstrap_mean(-single.total, single.episodes, resamples=resamples),
        "gain": bootstrap_mean(single.total - model.total, model.episodes, resamples=resamples),
    }
    for name in model.terms:
        difference = single.terms[name] - model.terms[name]
        figures[f"gain_{name}"] = bootstrap_mean(difference, model.episodes, resamples=resamples)
    return figures


def effective_components(bounds: Bounds, *, resamples: int = 1000, seed: int = 0) -> Figure:
    """exp H of the mean responsibilities; the interval resamples episodes."""
    _, label = np.unique(bounds.episodes, return_inverse=True)
    sums = np.zeros((label.max() + 1, bounds.responsibilities.shape[1]))
    np.add.at(sums, label, bounds.responsibilities)
    drawn = np.random.default_rng(seed).integers(len(sums), size=(resamples, len(sums)))
    spread = _exp_entropy(sums[drawn].sum(1))
    low, high = np.quantile(spread, [0.025, 0.975])
    return {
        "mean": float(_exp_entropy(sums.sum(0))),
        "low": float(low),
        "high": float(high),
        "n": len(bounds.total),
    }


def _exp_entropy(weights: Array) -> Array:
    share = weights / weights.sum(-1, keepdims=True)
    logs = np.log(share, where=share > 0, out=np.zeros_like(share))
    found: Array = np.exp(-(share * logs).sum(-1))
    return found


def moving_psnr(predicted: Tensor, target: Tensor, last: Tensor) -> float | None:
    """PSNR in dB, peak 1, over the pixels that moved since ``last``.

    Args:
        predicted: frames [K, 3, H, W] in [0, 1].
        target: the true ones.
        last: the last frame seen, [3, H, W].

    Returns:
        ``None`` where fewer than :data:`FEWEST` pixels moved.
    """
    from torchmetrics.functional.image import peak_signal_noise_ratio

    moved = ((target - last).abs() > MOVED).any(dim=1, keepdim=True).expand_as(target)
    if int(moved.sum()) < 3 * FEWEST:
        return None
    return float(peak_signal_noise_ratio(predicted[moved], target[moved], data_range=1.0))


@torch.no_grad()
def open_loop(
    model: DPGMMVariationalRecurrentAutoencoder,
    batches: Iterable[Batch],
    *,
    horizon: int = 8,
    seed: int = 0,
    resamples: int = 1000,
) -> dict[str, Any]:
    """Predictions without frames to look at, PSNR on moving pixels beside the last frame's.

    Args:
        model: in eval mode.
        batches: held-out windows of one episode each, more than ``horizon`` frames long; the
            last ``horizon`` are predicted by the prior's mean.
        horizon: steps.
        seed: of the wrong actions.
        resamples: of the bootstrap.

    Returns:
        Over all steps, ``model``, ``copy_last``, ``wrong_action`` (other windows' actions), and
        the paired ``gain`` over copying and ``gain_wrong_action`` over wrong actions; the same
        for every single step under ``k1`` to ``k<horizon>``. In dB.

    Raises:
        DataError: windows too short, or nothing moves in any.
    """
    device = next(model.parameters()).device
    shuffle = torch.Generator().manual_seed(seed)
    spans = {"": slice(0, horizon), **{f"k{k + 1}": slice(k, k + 1) for k in range(horizon)}}
    scores: dict[str, list[tuple[float, float, float]]] = {name: [] for name in spans}
    labels: dict[str, list[int]] = {name: [] for name in spans}
    for batch in batches:
        episodes = episode_labels(batch)
        batch = batch.to(device)
        known = batch.images.shape[1] - horizon
        if known < 1:
            raise DataError(
                f"windows of {batch.images.shape[1]} frames are too short to predict {horizon}; "
                f"expected at least {horizon + 1}"
            )
        frames = batch.images.float() / 255
        actions = model.action_vectors(batch.action, batch.action_vector)
        state = model.observe(batch.images[:, :known], actions[:, : known - 1])
        ahead = actions[:, known - 1 : known - 1 + horizon]
        arms = [
            model.imagine(state, chosen, "mean").frames
            for chosen in (ahead, ahead[_others(len(ahead), shuffle)])
        ]
        for row, episode in enumerate(episodes):
            last, true = frames[row, known - 1], frames[row, known:]
            pictures = [arm[row] for arm in arms if arm is not None] + [last.expand_as(true)]
            for name, span in spans.items():
                found = [moving_psnr(p[span], true[span], last) for p in pictures]
                if found[0] is not None:
                    scores[name].append(tuple(found))  # type: ignore[arg-type]
                    labels[name].append(int(episode))
    if not scores[""]:
        raise DataError("nothing moves in any held-out window; there is nothing to predict")
    figures = {
        name: _arms(np.array(scores[name]), np.array(labels[name]), resamples)
        for name in spans
        if scores[name]
    }
    return {**figures.pop(""), **figures}


def _others(count: int, generator: torch.Generator) -> Tensor:
    """For each of ``count`` rows another one, at random: [count]; a single row has no other."""
    order = torch.randperm(count, generator=generator)
    return torch.empty_like(order).scatter_(0, order, order.roll(1))


def _arms(scores: Array, episodes: Array, resamples: int) -> dict[str, Figure]:
    model, wrong, copy = scores.T
    columns = {
        "model": model,
        "copy_last": copy,
        "wrong_action": wrong,
        "gain": model - copy,
        "gain_wrong_action": model - wrong,
    }
    return {
        name: bootstrap_mean(values, episodes, resamples=resamples)
        for name, values in columns.items()
    }


@torch.no_grad()
def reconstruction_quality(
    model: DPGMMVariationalRecurrentAutoencoder,
    batches: Iterable[Batch],
    *,
    seed: int = 0,
    resamples: int = 1000,
) -> dict[str, Figure]:
    """PSNR (dB) and SSIM of whole reconstructed frames, of each window's last frame; PSNR of its
    moving pixels beside that of the frame before (``copy_last``), and the paired ``gain``.

    Args:
        model: in eval mode.
        batches: held-out windows.
        seed: of the latents drawn for earlier frames; the last one's is the posterior's mean.
        resamples: of the bootstrap.
    """
    from torchmetrics.functional.image import (
        peak_signal_noise_ratio,
        structural_similarity_index_measure,
    )

    device = next(model.parameters()).device
    columns: dict[str, list[Array]] = {"psnr": [], "ssim": []}
    moving: list[tuple[float, float]] = []
    labels: list[Array] = []
    moving_labels: list[int] = []
    for number, batch in enumerate(batches):
        episodes = episode_labels(batch)
        batch = batch.to(device)
        actions = model.action_vectors(batch.action, batch.action_vector)
        with torch.random.fork_rng():
            torch.manual_seed(seed + number)
            outputs = model.forward_sequence(batch.images, actions, batch.done)
        maps = outputs["log_attention_predicted"][:, -1].exp()
        made = model.decoder(outputs["z_mean"][:, -1], maps).clamp(0, 1)
        true, before = outputs["observations"][:, -1], outputs["observations"][:, -2]
        psnr = peak_signal_noise_ratio(made, true, data_range=1.0, reduction="none", dim=(1, 2, 3))
        ssim = structural_similarity_index_measure(made, true, data_range=1.0, reduction="none")
        assert isinstance(ssim, Tensor)
        columns["psnr"].append(psnr.cpu().numpy())
        columns["ssim"].append(ssim.cpu().numpy())
        labels.append(episodes)
        for row, episode in enumerate(episodes):
            pair = [moving_psnr(x[row, None], true[row, None], before[row]) for x in (made, before)]
            if pair[0] is not None and pair[1] is not None:
                moving.append((pair[0], pair[1]))
                moving_labels.append(int(episode))
    clusters = np.concatenate(labels)
    figures = {
        name: bootstrap_mean(np.concatenate(values), clusters, resamples=resamples)
        for name, values in columns.items()
    }
    if moving:
        model_psnr, copy = np.array(moving).T
        for name, values in {
            "moving": model_psnr,
            "copy_last": copy,
            "gain": model_psnr - copy,
        }.items():
            figures[name] = bootstrap_mean(values, np.array(moving_labels), resamples=resamples)
    return figures


def measure(
    model: DPGMMVariationalRecurrentAutoencoder,
    single: DPGMMVariationalRecurrentAutoencoder,
    batches: Iterable[Batch],
    *,
    horizon: int = 8,
    samples: int = 15,
    draws: int = 2,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Everything the gate reads: ``elbo``, ``effective_components``, ``reconstruction`` and
    ``open_loop``; beside them ``surprise``, the KL of z of every window [N].

    Args:
        model: the mixture.
        single: the same network, trained alike, with ``max_components`` 1.
        batches: held-out windows; gone through several times.
        horizon: of the open-loop predictions.
        samples: see :func:`held_out_bounds`.
        draws: see :func:`held_out_bounds`.
        resamples: of the bootstrap.
        seed: of all draws.
    """
    held = list(batches)
    options = {"samples": samples, "draws": draws, "seed": seed}
    own = held_out_bounds(model.eval(), held, **options)
    other = held_out_bounds(single.eval(), held, **options)
    return {
        "elbo": compare_bounds(own, other, resamples=resamples),
        "effective_components": effective_components(own, resamples=resamples, seed=seed),
        "reconstruction": reconstruction_quality(model, held, seed=seed, resamples=resamples),
        "open_loop": open_loop(model, held, horizon=horizon, seed=seed, resamples=resamples),
        "surprise": own.terms["kl_z"],
    }

"""Object permanence, measured where the truth is known: a game's engine took an object away.

Each counterfactual set holds what really came after an action, and what came when an object
was taken out of the world before it. The two are told apart by the critic, and by two ways
that have learned nothing: how much the picture changed, and the worst match of any block of
the last frame in the next one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from iwm.data.branches import VISIBLE_LEVELS, BranchSet
from iwm.errors import DataError
from iwm.evaluation.calibration import SURPRISE_THRESHOLD
from iwm.evaluation.pictures import roc_plot, strips
from iwm.evaluation.sequences import Windows
from iwm.evaluation.statistics import Figure, bootstrap_mean
from iwm.evaluation.surprise import auroc, quantile_figure, roc_curve, weighted_quantile

Array = np.ndarray[Any, Any]
ARMS = ("model", "blocks", "change")
_BATCH = 128


class Critic(Protocol):
    """What is measured (see ``iwm.models.permanence``)."""

    def vanished(self, before: Tensor, after: Tensor) -> Tensor:
        """Log odds [B, h, w] of the last two frames uint8 [B, 2, 3, H, W] and the next one."""
        ...

    def parameters(self) -> Any:
        """Weights; the first one's device is the model's."""
        ...


@dataclass(frozen=True)
class Removals:
    """N states of all sets in which an object was taken away.

    ``before`` uint8 [N, 2, 3, H, W]: the frame before the state, and the state; ``came``,
    ``without`` uint8 [N, 3, H, W]: what really came, and what came without the object;
    ``shown`` bool [N, H, W]: pixels in which the last two differ; ``episode`` and ``name`` [N].
    """

    before: Tensor
    came: Tensor
    without: Tensor
    shown: Tensor
    episode: Array
    name: Array


@dataclass(frozen=True)
class Outcome:
    """``metrics`` for the report, ``calibration``, and what the pictures need."""

    metrics: dict[str, Any]
    calibration: dict[str, Any]
    removals: Removals
    maps: Tensor
    roc: dict[str, dict[str, list[float]]]


def removals(sets: Mapping[str, BranchSet]) -> Removals:
    """The states of ``sets`` in which an object was taken away, and one sees it.

    Raises:
        DataError: there is none.
    """
    parts = []
    for label, (name, found) in enumerate(sorted(sets.items())):
        at = np.flatnonzero(found.has_removed)
        if not len(at):
            continue
        earlier = found.frames[at, max(0, found.history - 2)]
        frames = (earlier, found.frames[at, -1], found.outcomes[at, found.taken[at]])
        old, now, came, without = (
            torch.from_numpy(np.array(f)).permute(0, 3, 1, 2) for f in (*frames, found.removed[at])
        )
        before = torch.stack([old, now], 1)
        shown = (came.int() - without.int()).abs().amax(1) > VISIBLE_LEVELS
        episode = (np.int64(label) << 32) + np.asarray(found.episode[at])
        parts.append((before, came, without, shown, episode, np.full(len(at), name)))
    if not parts:
        raise DataError(
            "no counterfactual set has a state in which an object was taken away; plan games with "
            "objects under `branch`, or more states"
        )
    before, came, without, shown, episode, name = zip(*parts, strict=True)
    return Removals(
        torch.cat(before),
        torch.cat(came),
        torch.cat(without),
        torch.cat(shown),
        np.concatenate(episode),
        np.concatenate(name),
    )


@torch.no_grad()
def vanished(model: Critic, before: Tensor, after: Tensor) -> Tensor:
    """Log odds [N, h, w], on the CPU."""
    device = next(iter(model.parameters())).device
    parts = zip(torch.split(before, _BATCH), torch.split(after, _BATCH), strict=True)
    return torch.cat([model.vanished(a.to(device), b.to(device)).cpu() for a, b in parts])


def strongest(maps: Tensor) -> Array:
    """The score of a transition: -log of the chance that its likeliest cell lost nothing, [N]."""
    scores: Array = F.softplus(maps.flatten(1).amax(1)).numpy()
    return scores


def block_mismatch(before: Tensor, after: Tensor, block: int = 8, reach: int = 12) -> Array:
    """Worst of the blocks of a frame by its best match in the next one, [N]: no learning.

    Args:
        before: uint8 [N, 3, H, W].
        after: the frames that came next, likewise.
        block: pixels of a block's side; blocks overlap by half.
        reach: pixels that a block may have moved, in steps of two.
    """
    one, other = before.float() / 255, F.pad(after.float() / 255, (reach,) * 4, value=9.0)
    height, width = before.shape[-2:]
    best: Tensor | None = None
    for down in range(0, 2 * reach + 1, 2):
        for across in range(0, 2 * reach + 1, 2):
            there = other[..., down : down + height, across : across + width]
            error = (one - there).square().mean(1, keepdim=True)
            error = F.avg_pool2d(error, block, block // 2)
            best = error if best is None else torch.minimum(best, error)
    assert best is not None
    worst: Array = best.flatten(1).amax(1).numpy()
    return worst


def evaluate(
    model: Critic,
    sets: Mapping[str, BranchSet],
    held: Windows,
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> Outcome:
    """Measure and calibrate a critic.

    Args:
        model: in eval mode.
        sets: counterfactual sets, from episodes that nothing was trained on.
        held: runs of three frames of held-out play, for the scale.
        resamples: of intervals, by episode.
        seed: of the resampling.

    Raises:
        DataError: no object was taken away in any set.
    """
    found = removals(sets)
    maps = [vanished(model, found.before, after) for after in (found.came, found.without)]
    pairs = [(found.before[:, 1], after) for after in (found.came, found.without)]
    scores = {
        "model": [strongest(each) for each in maps],
        "blocks": [block_mismatch(*pair) for pair in pairs],
        "change": [(a.float() - b.float()).abs().mean((1, 2, 3)).numpy() for a, b in pairs],
    }
    boot: dict[str, Any] = {"resamples": resamples, "seed": seed}

    def told(arm: str, rows: Array) -> Figure:
        normal, odd = (values[rows] for values in scores[arm])
        return auroc(normal, found.episode[rows], odd, found.episode[rows], **boot)

    everyone = np.ones(len(found.name), bool)
    share = found.shown.float().mean((1, 2)).numpy()
    size = 3 * np.argsort(np.argsort(share, kind="stable")) // len(share)
    ordinary, scale, p95 = _calibrate(model, held, boot)
    metrics = {
        "removal": {arm: told(arm, everyone) for arm in ARMS},
        "removal_of": {
            name: {arm: told(arm, found.name == name) for arm in ARMS}
            for name in sorted(set(found.name.tolist()))
        },
        "removal_by_size": {
            label: {
                **{arm: told(arm, size == third) for arm in ARMS},
                "share_of_pixels": bootstrap_mean(
                    share[size == third], found.episode[size == third], **boot
                ),
            }
            for third, label in enumerate(("small", "middle", "large"))
        },
        "paired": {
            arm: bootstrap_mean((odd > normal) + 0.5 * (odd == normal), found.episode, **boot)
            for arm, (normal, odd) in scores.items()
        },
        "points": _points(maps[1], found, boot),
        "p95": p95,
        "ordinary": {"transitions": len(ordinary)},
    }
    calibration = {"scale": scale, "threshold": SURPRISE_THRESHOLD, "p95": p95}
    roc = {arm: roc_curve(normal, odd) for arm, (normal, odd) in scores.items()}
    return Outcome(metrics, calibration, found, maps[1], roc)


def _calibrate(model: Critic, held: Windows, boot: dict[str, Any]) -> tuple[Array, float, Figure]:
    """Scores of ordinary play, the scale that puts their 95th percentile at the threshold, and
    where it lies on the half of the episodes that the scale was not made from.
    """
    frames = held.frames[:, :3].permute(0, 1, 4, 2, 3)
    scores = strongest(vanished(model, frames[:, :2], frames[:, 2]))
    # Recordings weigh alike, however long each was played.
    recording = held.episode >> 32
    weight = np.zeros(len(scores))
    for name in set(recording.tolist()):
        weight[recording == name] = 1 / (recording == name).sum()
    _, order = np.unique(held.episode, return_inverse=True)
    fitted = order % 2 == 0
    level = weighted_quantile(scores[fitted], weight[fitted], 0.95)
    other = SURPRISE_THRESHOLD / max(level, 1e-12)
    p95 = quantile_figure(other * scores[~fitted], weight[~fitted], held.episode[~fitted], **boot)
    return scores, SURPRISE_THRESHOLD / max(weighted_quantile(scores, weight, 0.95), 1e-12), p95


def _points(maps: Tensor, found: Removals, boot: dict[str, Any]) -> dict[str, Figure]:
    """Whether the strongest cell touches where the object was, against a cell drawn at random.

    The object was seen in the frame before: its cell there is near where it would be now, so
    pixels within two cells count.
    """
    rows, columns = maps.shape[-2:]
    cells = F.adaptive_max_pool2d(found.shown.float().unsqueeze(1), (rows, columns))
    near = F.max_pool2d(cells, 5, 1, 2).flatten(1)
    hit = near.gather(1, maps.flatten(1).argmax(1, keepdim=True))[:, 0]
    return {
        "model": bootstrap_mean(hit.numpy(), found.episode, **boot),
        "chance": bootstrap_mean(near.mean(1).numpy(), found.episode, **boot),
    }


def draw(outcome: Outcome, folder: Path, count: int = 8) -> None:
    """``removal.png``: states, outcomes and where the critic points; ``roc.png``."""
    found = outcome.removals
    at = np.linspace(0, len(found.name) - 1, min(count, len(found.name))).round().astype(int)
    rows = []
    for place in at:
        chance = outcome.maps[place].sigmoid()[None, None]
        size = tuple(found.before.shape[-2:])
        picture = F.interpolate(chance, size)[0].expand(3, -1, -1)
        frames = (*found.before[place], found.came[place], found.without[place])
        images = [frame.permute(1, 2, 0).numpy() for frame in frames]
        rows.append([*images, (255 * picture).byte().permute(1, 2, 0).numpy()])
    titles = ["before", "last frame", "what came", "without the object", "gone, says the critic"]
    strips(rows, titles, folder / "removal.png")
    roc_plot(outcome.roc, folder / "roc.png")

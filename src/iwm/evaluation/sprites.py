"""Imagined frames of the procedural world against the truth: how many sprites, and where.

The world is played afresh, in episodes that were never recorded, so that for every frame the
background, every sprite's own picture and every position are known. A sprite is looked for in an
imagined frame where it fits best against how much it stands out from the known background; it is
there if the pixels are nearer to it than to the background. Sprites that are lost on their
background, or look like another, are left out: those that the same search does not find in the
last true frame shown. From there a sprite is looked for no farther than any can move.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from iwm.data.config import ShardConfig
from iwm.data.frames import decoder, encode_frame
from iwm.errors import DataError
from iwm.evaluation.sequences import Windows
from iwm.evaluation.statistics import Figure, bootstrap_mean
from iwm.gameplay.config import RecordPlan
from iwm.gameplay.fresh import fresh_seeds
from iwm.gameplay.play import derive_seed
from iwm.gameplay.policies import automatic_policy
from iwm.gameplay.sources.procedural import SpriteWorld

Array = np.ndarray[Any, Any]

VISIBLE = 0.5
"""A sprite counts, and its place is held against the truth, while this share of it is seen."""
_THERE = 0.5
"""How sure :func:`locate` must be for a sprite to be there: half the squared error explained."""
_STRICT = 3.0
"""How much a misfit weighs against standing out: another sprite stands out as well."""
_OFF = 2.0
"""Pixels by which a sprite may be misplaced in a true frame and still be one that can be told."""
_SPEED = 0.1
"""Of the fastest, the player, a tic, in sides of the picture: 3 pixels of 32."""
_TRIES = 64
"""Fresh episodes tried for each window that is wanted."""


@dataclass(frozen=True)
class Sprite:
    """One sprite of a window, the player first.

    ``picture`` uint8 [s, s, 3], ``mask`` bool [s, s]; ``place`` [T, 2]: its centre (x, y) in
    pixels at each frame, NaN once it is gone; ``seen`` [T]: the share of it that is not hidden.
    """

    picture: Array
    mask: Array
    place: Array
    seen: Array


@dataclass(frozen=True)
class Staged:
    """Windows of fresh play, and of each its background [H, W, 3] and its sprites; ``speed``:
    pixels a frame along each axis that no sprite exceeds.
    """

    windows: Windows
    backgrounds: list[Array]
    sprites: list[list[Sprite]]
    speed: float


def stage(
    plan: RecordPlan,
    shard: ShardConfig,
    vocabulary: Sequence[str],
    *,
    frames: int,
    count: int,
    record_seed: int,
    seed: int,
) -> Staged:
    """Play fresh episodes of the sprite world, one window each, frames as the shards hold them.

    Args:
        plan: of the recording; its pictures have the shards' size.
        shard: the shards' encoding.
        vocabulary: the model's action names.
        frames: of each window.
        count: windows.
        record_seed: ``record.seed``, whose episodes are avoided.
        seed: of the episodes.

    Raises:
        DataError: episodes are too short.
    """
    if plan.policy == "keyboard":
        plan = replace(plan, policy="random_hold")
    world, policy = SpriteWorld(plan), automatic_policy(plan, SpriteWorld.actions)
    seeds = fresh_seeds("branch", plan, record_seed, seed)
    own = [list(vocabulary).index(name) for name in world.actions]
    decode = decoder(shard.format, (plan.height, plan.width, 3))
    pictures, actions, backgrounds, sprites = [], [], [], []
    for _ in range(_TRIES * count):
        episode_seed = next(seeds)
        image = world.reset(episode_seed)
        policy.reset(derive_seed(episode_seed, "policy"))
        background, layers = world.layers()
        shown, done, truths = [], [], []
        while True:
            shown.append(np.empty_like(image))
            decode(encode_frame(image, shard), shown[-1])
            truths.append({entry["id"]: entry for entry in world.truth()["sprites"]})
            if len(shown) == frames:
                break
            done.append(policy.choose(image))
            outcome = world.step(done[-1])
            if outcome.done or outcome.frame is None:
                break
            image = outcome.frame
        if len(shown) < frames:
            continue
        pictures.append(np.stack(shown))
        actions.append([own[action] for action in done])
        backgrounds.append(background)
        sprites.append([_sprite(number, layers[number], truths) for number in layers])
        if len(pictures) == count:
            break
    if not pictures:
        raise DataError(
            f"record: {plan.name}: no fresh episode lasts {frames} frames; imagine fewer"
        )
    choices = torch.zeros(len(pictures), len(vocabulary), dtype=torch.bool)
    choices[:, own] = True
    return Staged(
        Windows(
            torch.from_numpy(np.stack(pictures)),
            torch.tensor(actions),
            np.arange(len(pictures)),
            choices,
        ),
        backgrounds,
        sprites,
        _SPEED * min(plan.width, plan.height) * plan.frame_skip,
    )


def _sprite(number: int, layer: tuple[Array, Array], truths: list[dict[int, Any]]) -> Sprite:
    picture, mask = layer
    place, seen = np.full((len(truths), 2), np.nan), np.zeros(len(truths))
    for step, truth in enumerate(truths):
        if (entry := truth.get(number)) is not None:
            place[step] = entry["x"], entry["y"]
            seen[step] = entry["visible"] / mask.sum()
    return Sprite(picture, mask, place, seen)


def locate(
    frames: Tensor,
    background: Array,
    sprite: Sprite,
    around: Array | None = None,
    reach: Array | None = None,
) -> tuple[Array, Array]:
    """Where a sprite is in pictures of a known background.

    Args:
        frames: uint8 [K, H, W, 3].
        background: uint8 [H, W, 3].
        sprite: what to look for.
        around: centre (x, y) that it is looked for around; anywhere when None.
        reach: pixels along each axis from there that are looked through, [K].

    Returns:
        Centres (x, y) in pixels [K, 2], and how sure [K]: 1 where the pixels are the sprite's
        own, 0 where they are the background's, less where they are neither.
    """
    shape = torch.from_numpy(sprite.mask).float()[None, None]
    template = torch.from_numpy(sprite.picture).float().permute(2, 0, 1)[None] * shape
    size = template.square().sum()

    def error(pictures: Tensor) -> Tensor:
        """Squared error of the sprite at each place, [K, rows, columns]."""
        planes = pictures.permute(0, 3, 1, 2).float()
        own = F.conv2d(planes.square().sum(1, keepdim=True), shape)
        return (own - 2 * F.conv2d(planes, template) + size)[:, 0]

    missed, power = error(frames), error(torch.from_numpy(background)[None])
    score = power - _STRICT * missed
    if around is not None and reach is not None:
        x, y = (torch.arange(side) + len(sprite.mask) / 2 for side in score.shape[:0:-1])
        far = torch.maximum((x - around[0]).abs()[None, :], (y - around[1]).abs()[:, None])
        score = score.masked_fill(far > torch.from_numpy(reach)[:, None, None], -torch.inf)
    best = score.flatten(1).argmax(1)
    rows, columns = best // power.shape[-1], best % power.shape[-1]
    left = missed.flatten(1).gather(1, best[:, None])[:, 0]
    sure = 1 - left / power.flatten()[best].clamp(min=1)
    half = len(sprite.mask) / 2
    return torch.stack([columns, rows], 1).numpy() + half, sure.numpy()


def truth_figures(
    staged: Staged, frames: Tensor, present: int, steps: Sequence[int], **boot: int
) -> dict[str, Any]:
    """Counts and places in imagined frames against the truth, beside the last frame's.

    Args:
        staged: N windows.
        frames: what was imagined, uint8 [N, K, H, W, 3].
        present: the last frame that was shown.
        steps: which of the K to report, from 1.
        boot: ``resamples`` and ``seed``.

    Returns:
        For each step ``k<step>``: ``place`` (of sprites in motion) and ``player``, errors in
        pixels, and ``count``, the error in the number of sprites: each ``model``, ``copy_last``
        and the paired ``gain`` (what the model's error is smaller by), and ``true_frames``: what
        the same search makes of the true frames.
    """
    columns = {
        arm: _errors(staged, pictures, present, steps)
        for arm, pictures in (
            ("model", frames),
            ("copy_last", None),
            ("true_frames", staged.windows.frames[:, present + 1 :]),
        )
    }
    figures: dict[str, Any] = {}
    for place, step in enumerate(steps):
        figures[f"k{step}"] = {}
        for what in ("place", "player", "count"):
            arms = {arm: errors[what][place] for arm, errors in columns.items()}
            arms["gain"] = arms["copy_last"] - arms["model"]
            figures[f"k{step}"][what] = {
                arm: _mean(values, staged.windows.episode, **boot) for arm, values in arms.items()
            }
    return figures


def _mean(values: Array, episodes: Array, **boot: int) -> Figure:
    """Mean over the windows [N] that have a value."""
    known = np.isfinite(values)
    return bootstrap_mean(values[known], episodes[known], **boot)


def _errors(
    staged: Staged, frames: Tensor | None, present: int, steps: Sequence[int]
) -> dict[str, Array]:
    """Mean errors of each step and window [steps, N]; ``frames`` None: the last one's truth."""
    shape = len(steps), len(staged.windows)
    found = {what: np.full(shape, np.nan) for what in ("place", "player", "count")}
    at = np.array(steps)
    for window, sprites in enumerate(staged.sprites):
        off, counted, true = [], np.zeros(len(steps)), np.zeros(len(steps))
        for number, sprite in enumerate(sprites):
            seen = sprite.seen[present + at]
            gone = np.isnan(sprite.place[present + at, 0])
            if not _can_be_told(staged, window, sprite, present):
                continue
            if frames is None:
                place = np.broadcast_to(sprite.place[present], (len(steps), 2))
                there = np.ones(len(steps), bool)
            else:
                shown = frames[window][torch.from_numpy(at - 1)]
                place, sure = locate(
                    shown,
                    staged.backgrounds[window],
                    sprite,
                    sprite.place[present],
                    staged.speed * at,
                )
                there = sure > _THERE
            error = np.linalg.norm(place - sprite.place[present + at], axis=1)
            error[seen < VISIBLE] = np.nan
            if number == 0:
                found["player"][:, window] = error
                continue
            off.append(error)
            known = gone | (seen >= VISIBLE)  # what is hidden but there counts for nobody
            counted += there & known
            true += ~gone & known
        if off:
            some = np.stack(off)
            whole = np.isfinite(some)
            total = np.where(whole, some, 0).sum(0)
            found["place"][:, window] = np.where(
                whole.any(0), total / np.maximum(whole.sum(0), 1), np.nan
            )
            found["count"][:, window] = np.abs(counted - true)
    return found


def _can_be_told(staged: Staged, window: int, sprite: Sprite, present: int) -> bool:
    """Whether a sprite is seen in the last true frame shown, and found where it is."""
    if sprite.seen[present] < VISIBLE:
        return False
    frame = staged.windows.frames[window, present : present + 1]
    place, sure = locate(frame, staged.backgrounds[window], sprite)
    off = float(np.linalg.norm(place[0] - sprite.place[present]))
    return bool(sure[0] > _THERE) and off <= _OFF

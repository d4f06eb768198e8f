"""Changes to whole windows of play that leave the dynamics true."""

from __future__ import annotations

import torch
from torch import Tensor

from iwm.data.augment import JITTER, jitter
from iwm.models.action_config import ActionConfig
from iwm.objectives.gather import Part


def augment_windows(
    images: Tensor, ids: Tensor, config: ActionConfig, part: Part, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Mirror some windows, exchanging their actions, and jitter the colours of some frames.

    Args:
        images: float [B, T, 3, H, W] in [0, 1].
        ids: int64 [B, T - 1], the actions between them; -1 is none.
        config: what to do and how often; names the actions.
        part: the rows of the global batch that these are.
        generator: draws for the global batch.

    Returns:
        Images, ids, and the differences of successive frames' jitters [B, T - 1, 4], zeros
        where there is none.
    """
    images, ids = _mirror(images, ids, config, part, generator)
    a, (batch, length) = config.augment, images.shape[:2]
    if not a.jitter_share:
        return images, ids, images.new_zeros(batch, length - 1, JITTER)
    drawn = 2 * torch.rand(part.total, length, JITTER, generator=generator) - 1
    chosen = torch.rand(part.total, 1, 1, generator=generator) < a.jitter_share
    parameters = (drawn * torch.tensor(a.jitter) * chosen)[part.rows].to(images.device)
    rows = chosen[part.rows].flatten().to(images.device)
    if rows.any():
        images = images.clone()
        changed = jitter(images[rows].flatten(0, 1), parameters[rows].flatten(0, 1))
        images[rows] = changed.view(-1, *images.shape[1:])
    return images, ids, parameters[:, 1:] - parameters[:, :-1]


def _mirror(
    images: Tensor, ids: Tensor, config: ActionConfig, part: Part, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    pairs, names = config.augment.mirror, config.vocabulary
    if not pairs:
        return images, ids
    drawn = torch.rand(part.total, generator=generator)[part.rows].to(images.device)
    flipped = drawn < config.augment.mirror_share
    images = torch.where(flipped.view(-1, 1, 1, 1, 1), images.flip(-1), images)
    exchange = torch.arange(len(names))
    for left, right in pairs:
        i, j = names.index(left), names.index(right)
        exchange[i], exchange[j] = j, i
    mirrored = exchange.to(ids.device)[ids.clamp_min(0)]
    return images, torch.where(flipped[:, None] & (ids >= 0), mirrored, ids)

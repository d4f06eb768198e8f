"""Object permanence: is what the last frame showed still there?

Latents that are trained to predict keep what helps to tell outcomes apart; a small object that
the game takes away moves them less than noise does, and the frame without it is no stranger
than any other. This critic asks the one question. Each cell of the last frame looks for itself
in the next one, nearby (a softmax over matches of learned features), and in the one before: a
flash, or blood that flies, was not there then. A small network judges it beside what it found
and beside its neighbours, whose way tells what left the view.

It is trained on real play into which objects were put (:mod:`iwm.data.apparitions`), which
needs no labels; real play itself teaches what goes away by rights, such as what turns out of
view or is picked up. But then the play's own objects never vanish, and what was put is in the
end told by how it looks. So where the game's engine can take its own objects away, runs from
fresh episodes in which it did are mixed in (:mod:`iwm.data.removals`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from iwm.data.apparitions import covered, paste, sample_apparitions
from iwm.data.augment import to_float
from iwm.data.removals import RemovalSet
from iwm.errors import ModelError
from iwm.models.encoder import load_state
from iwm.models.permanence_config import PermanenceConfig
from iwm.models.saving import WEIGHTS_FILE, read_config, read_weights, save_model
from iwm.objectives.gather import Part
from iwm.settings import parse, to_dict

NAME = "permanence"
_SHARPNESS = 10.0
"""Of the softmax over cosines of features."""


class Windows(Protocol):
    """What a batch must hold: ``images`` uint8 [B, T, 3, H, W], successive frames."""

    images: Tensor


def _layer(channels: int, out: int, size: int = 3, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, out, size, stride, size // 2), nn.GroupNorm(8, out), nn.SiLU()
    )


class ObjectPermanence(nn.Module):
    """See the module.

    Args:
        config: shapes, and what is pretended in training.
    """

    places: Tensor
    outside: Tensor

    def __init__(self, config: PermanenceConfig) -> None:
        super().__init__()
        self.config = c = config
        fold = c.cell // 2
        self.features = nn.Sequential(
            nn.PixelUnshuffle(fold),
            _layer(3 * fold**2, c.width),
            _layer(c.width, c.width, stride=2),
            _layer(c.width, c.width),
            nn.Conv2d(c.width, c.width, 3, padding=1),
        )
        self.query = nn.Conv2d(c.width, c.match, 1)
        self.key = nn.Conv2d(c.width, c.match, 1)
        rows, columns = (2 * reach + 1 for reach in c.reach)
        self.way = nn.Parameter(torch.zeros(2, rows * columns))
        self.judge = nn.Sequential(
            _layer(5 * c.width + 4, c.head, size=1),
            _layer(c.head, c.head),
            _layer(c.head, c.head),
            nn.Conv2d(c.head, 1, 3, padding=1),
        )
        places, outside = _ways(c.cells, c.reach)
        self.register_buffer("places", places, persistent=False)
        self.register_buffer("outside", outside, persistent=False)
        self.to(memory_format=torch.channels_last)
        self._draw: tuple[torch.Generator, Part | None] = (torch.default_generator, None)
        self._removals: Sequence[RemovalSet] = ()

    # -- what a released model does ----------------------------------------------------

    @torch.no_grad()
    def vanished(self, before: Tensor, after: Tensor) -> Tensor:
        """Log odds [B, h, w] that what each cell of the last frame shows is gone from the next.

        Args:
            before: the last two frames, older first, uint8 or float in [0, 1],
                [B, 2, 3, H, W]; where there is but one, it stands for both.
            after: the frames that came next, [B, 3, H, W].

        Raises:
            ModelError: pictures of another size, or not as many of both.
        """
        size = (3, *self.config.image_size)
        if tuple(before.shape[1:]) != (2, *size) or tuple(after.shape[1:]) != size:
            raise ModelError(
                f"frames have shapes {list(before.shape[1:])} and {list(after.shape[1:])}, the "
                f"model takes {[2, *size]} and {list(size)}"
            )
        if len(before) != len(after):
            raise ModelError(f"{len(before)} runs of frames and {len(after)} next ones")
        return self.judged(torch.cat([to_float(before), to_float(after).unsqueeze(1)], 1))

    def score(self, before: Tensor, after: Tensor) -> Tensor:
        """-log of the chance that the likeliest cell lost nothing, in nats [B].

        Raises:
            ModelError: see :meth:`vanished`.
        """
        return F.softplus(self.vanished(before, after).flatten(1).amax(1))

    def judged(self, frames: Tensor) -> Tensor:
        """The same as :meth:`vanished` of float runs [B, 3, 3, H, W], with gradients."""
        flat = frames.transpose(0, 1).flatten(0, 1).contiguous(memory_format=torch.channels_last)
        features = self.features(2 * flat - 1)
        query = F.normalize(self.query(features).flatten(2), dim=1).chunk(3)[1]
        keys = F.normalize(self.key(features).flatten(2), dim=1).chunk(3)
        earlier, here, there = features.chunk(3)
        bias = self.way[:, self.places].masked_fill(self.outside, -1e4)
        told = [here]
        for key, other, usual in ((keys[0], earlier, bias[0]), (keys[2], there, bias[1])):
            likeness = _SHARPNESS * torch.bmm(query.transpose(1, 2), key) + usual
            found = torch.bmm(other.flatten(2), likeness.softmax(-1).transpose(1, 2))
            found = found.view_as(here)
            told += [found, here - found, likeness.amax(-1).view(-1, 1, *here.shape[-2:])]
        ends = (torch.linspace(-1, 1, side, device=here.device) for side in here.shape[-2:])
        place = torch.stack(torch.meshgrid(*ends, indexing="ij")).expand(len(here), -1, -1, -1)
        judged: Tensor = self.judge(torch.cat([*told, place], 1))
        return judged[:, 0].float()

    # -- training ----------------------------------------------------------------------

    def learn_from(self, removals: Sequence[RemovalSet]) -> None:
        """Mix what engines took away into the training's runs; the sets count alike.

        Raises:
            ModelError: pictures of another size.
        """
        for found in removals:
            if tuple(found.frames.shape[2:4]) != self.config.image_size:
                raise ModelError(
                    f"removals of {found.name} have pictures of {list(found.frames.shape[2:4])}, "
                    f"the model takes {list(self.config.image_size)} (height, width)"
                )
        self._removals = removals

    def before_step(self, seed: int, part: Part | None = None, *, statistics: bool = True) -> None:
        """Fix the step's randomness, drawn for the global batch.

        Args:
            seed: of the step, the same in every process.
            part: the rows of the global batch that come next; ``None``: all of them.
            statistics: not used; the figures beside the loss cost nothing.
        """
        del statistics
        self._draw = (torch.Generator().manual_seed(seed), part)

    def after_step(self, progress: float) -> None:
        """Nothing depends on how far training is."""

    def blocks(self) -> list[nn.Module]:
        """Too small to be worth sharding."""
        return []

    def forward(self, batch: Windows) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and logs of the first three frames of each window.

        Raises:
            ModelError: windows of fewer.
        """
        if batch.images.shape[1] < 3:
            raise ModelError("training on permanence needs windows of at least three frames")
        generator, part = self._draw[0], self._draw[1] or Part.whole(len(batch.images))
        share = part.weight(len(batch.images), part.total)
        drawn = sample_apparitions(part.total, self.config.apparitions, generator)
        drawn = drawn.rows(part.rows).to(batch.images.device)
        frames = to_float(batch.images[:, :3])
        frames, lost = paste(frames, drawn, part.gather(frames[:, 1]), self.config.cells)
        if self._removals:
            frames, lost = self._mix(frames, lost, part, generator)
        told = self.judged(frames)
        weight = told.new_tensor(self.config.pos_weight)
        loss = F.binary_cross_entropy_with_logits(told, lost, pos_weight=weight)
        logs = {
            "loss_cells": share * loss.detach(),
            "found": share * _mean(told.detach() > 0, lost > 0.5),
            "false_alarms": share * _mean(told.detach() > 0, lost < 0.5),
        }
        return share * loss, logs

    def _mix(
        self, frames: Tensor, lost: Tensor, part: Part, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Put runs without an object in the place of some, mirrored now and then."""
        drawn = torch.rand(4, part.total, generator=generator)[:, part.rows].double()
        chosen, which, row, mirrored = drawn
        places = (chosen < self.config.removed).nonzero()[:, 0]
        if not len(places):
            return frames, lost
        runs, gone = [], []
        for place in places.tolist():
            found = self._removals[int(which[place] * len(self._removals))]
            index = int(row[place] * len(found))
            run = torch.from_numpy(np.array(found.frames[index])).permute(0, 3, 1, 2)
            mask = torch.from_numpy(np.array(found.gone[index]))
            mirror = bool(mirrored[place] < 0.5)
            runs.append(run.flip(-1) if mirror else run)
            gone.append(mask.flip(-1) if mirror else mask)
        device = frames.device
        there = covered(torch.stack(gone).to(device).float() / 255, self.config.cells)
        places = places.to(device)
        frames = frames.index_copy(0, places, to_float(torch.stack(runs).to(device)))
        return frames, lost.index_copy(0, places, there)

    # -- on disk -----------------------------------------------------------------------

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the released model."""
        save_model(Path(folder), NAME, to_dict(self.config), self.state_dict())

    @classmethod
    def from_pretrained(cls, folder: str | Path, *, trainable: bool = False) -> Self:
        """Load a released model, in eval mode unless it is to be trained on.

        Raises:
            ModelError: missing, damaged, newer, or of another shape than its config says.
        """
        folder = Path(folder)
        model = cls(model_config(read_config(folder, NAME)["settings"], str(folder)))
        load_state(model, read_weights(folder), str(folder / WEIGHTS_FILE))
        return model.train(trainable)


def _ways(cells: tuple[int, int], reach: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Between every two cells: the number of the way, [h * w, h * w], and whether it is too far."""
    rows, columns = (torch.arange(side) for side in cells)
    place = torch.cartesian_prod(rows, columns)
    way = place[None] - place[:, None]
    limit = torch.tensor(reach)
    outside = (way.abs() > limit).any(-1)
    numbered = (way.clamp(-limit, limit) + limit) @ torch.tensor([2 * reach[1] + 1, 1])
    return numbered, outside


def _mean(values: Tensor, chosen: Tensor) -> Tensor:
    """Mean of some of the values; 0 where none is chosen."""
    return (values & chosen).float().sum() / chosen.float().sum().clamp_min(1)


def model_config(settings: dict[str, Any], where: str = "model") -> PermanenceConfig:
    """Typed settings from plain ones.

    Raises:
        ConfigError: one line per wrong key.
    """
    return parse(PermanenceConfig, settings, where)


def create(**settings: Any) -> ObjectPermanence:
    """An untrained model from plain settings (the entry in the model registry)."""
    return ObjectPermanence(model_config(settings))

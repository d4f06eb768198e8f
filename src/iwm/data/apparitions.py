"""Apparitions: objects that are put into three frames of play where the game had none.

What vanishes from one frame of real play to the next can be had as training data only from the
game's engine (:mod:`iwm.data.removals`). Without one it can be pretended: an object is put into
two frames, moved a little as the view moves, and not into the third. So that seams do not give
it away, others are put into all three; into the last alone, as what comes into view; or into the
middle one alone, as a flash that goes by rights. And so that strangeness does not either, objects
are cut out of other frames of the same play: what stands out there from its surroundings, along
its own outline.
The idea of training on pasted pieces is CutPaste's (Li et al., arXiv 2104.04015).

Drawn on the CPU for the global batch, pasted in one go on the device.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from iwm.settings import settings

Share = Annotated[float, Field(ge=0, le=1)]
Length = Annotated[float, Field(gt=0, le=1)]

NONE, LOST, KEPT, COME, FLASH = range(5)
_THERE = ((), (0, 1), (0, 1, 2), (2,), (1,))
"""In which of the three frames each kind is."""
_VISIBLE = 25 / 255
"""A pixel shows the object where a channel differs by more than this."""
_OUTLINE, _CRISP = 0.3, 5.0
"""An object ends where it stands out less than this share of its most; how sharply."""
_COVERED = 0.3
"""Share of a cell's pixels that must show an object for the cell to have lost it."""


@settings
class ApparitionConfig:
    """How apparitions are drawn. Lengths are shares of the frame's width or height."""

    untouched: Share = 0.3
    """Of the runs of three frames, left as they were played."""
    count: Annotated[int, Field(gt=0, le=8)] = 3
    """Most objects in a run."""
    kinds: tuple[Share, Share, Share, Share] = (0.35, 0.3, 0.15, 0.15)
    """Of the objects: lost, kept, come, flashes; the rest is not drawn."""
    radius: tuple[Length, Length] = (0.035, 0.22)
    """Smallest and largest half width; heights are up to two and a half times as much."""
    drift: tuple[Length, Length] = (0.11, 0.025)
    """Deviation of an object's way from frame to frame, across and down."""
    growth: Length = 0.15
    """Deviation of the logarithm of its growth on the way."""
    tinted: Share = 0.2
    """Of the objects, in other colours than their own."""
    own: Share = 0.6
    """Of the objects, cut from the very frame they are put into, and put as high in it: that is
    where such things are."""


@dataclass(frozen=True)
class Apparitions:
    """Objects of n runs of frames, k each, in the coordinates of ``grid_sample`` ([-1, 1]).

    ``kind`` and ``row`` int64 [n, k]: see the module, and whose frame it is cut from; ``level``
    bool [n, k]: whether it is put as high as it was there;
    ``centre``, ``radius``, ``way`` [n, k, 2]: x and y of its middle, half its size at most, how
    it moves; ``source``, ``growth``, ``phase`` [n, k]: how far down the list of what stands out
    in that frame, its growth on the way, its outline; ``tint`` [n, k, 3]: of its colour.
    """

    kind: Tensor
    row: Tensor
    level: Tensor
    centre: Tensor
    radius: Tensor
    way: Tensor
    source: Tensor
    growth: Tensor
    phase: Tensor
    tint: Tensor

    def rows(self, index: slice) -> Apparitions:
        """Those of some of the runs."""
        return Apparitions(**{f.name: getattr(self, f.name)[index] for f in fields(self)})

    def to(self, device: torch.device) -> Apparitions:
        """The same on another device."""
        return Apparitions(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})


def sample_apparitions(n: int, config: ApparitionConfig, generator: torch.Generator) -> Apparitions:
    """Draw the objects of n runs, cut from frames of the same n."""
    k = config.count

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(n, k, *shape, generator=generator)

    def normal(deviation: float) -> Tensor:
        return deviation * torch.randn(n, k, generator=generator)

    edges = torch.tensor(config.kinds).cumsum(0)
    drawn = torch.rand(n, k, generator=generator)
    kind = torch.tensor([LOST, KEPT, COME, FLASH, NONE])[torch.bucketize(drawn, edges, right=True)]
    untouched = torch.rand(n, generator=generator) < config.untouched
    low, high = (torch.tensor(2 * value).log() for value in config.radius)
    width = uniform(float(low), float(high)).exp()
    height = (width * uniform(-0.5, 0.9).exp()).clamp_max(0.8)
    drift = [2 * share for share in config.drift]
    tinted, own = uniform(0, 1) < config.tinted, uniform(0, 1) < config.own
    row = torch.randint(n, (n, k), generator=generator)
    return Apparitions(
        kind=torch.where(untouched[:, None], NONE, kind),
        row=torch.where(own, torch.arange(n)[:, None], row),
        level=own,
        centre=uniform(-0.95, 0.95, 2),
        radius=torch.stack([width, height], -1),
        way=torch.stack([normal(drift[0]), normal(drift[1])], -1),
        source=uniform(0, 1),
        growth=normal(config.growth).exp(),
        phase=uniform(0, 2 * torch.pi),
        tint=torch.where(tinted[..., None], uniform(0.4, 1.6, 3), 1.0),
    )


def paste(
    frames: Tensor, objects: Apparitions, others: Tensor, cells: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Put objects into runs of three frames.

    Args:
        frames: float [B, 3, 3, H, W] in [0, 1]: time, channel, row, column.
        objects: of the B runs.
        others: float [n, 3, H, W]: the frames that objects are cut from.
        cells: (h, w), which divide H and W.

    Returns:
        The frames with the objects, and ``lost`` float [B, h, w] in {0, 1}: the cells of the
        second that show one which the third lacks.
    """
    height, width = frames.shape[-2:]
    where = _positions(height, width, frames.device)
    standing = standing_out(others)
    shown = list(frames.unbind(1))
    lost = frames.new_zeros(len(frames), height, width)
    for place in range(objects.kind.shape[1]):
        kind, row = objects.kind[:, place], objects.row[:, place]
        origin = _most(standing[row], objects.source[:, place], where)
        piece = cut(
            others[row], standing[row], origin, objects.radius[:, place], objects.phase[:, place]
        )
        piece[:, :3] = (piece[:, :3] * objects.tint[:, place][..., None, None]).clamp(0, 1)
        centre, way = objects.centre[:, place].clone(), objects.way[:, place]
        centre[:, 1] = torch.where(objects.level[:, place], origin[:, 1], centre[:, 1])
        for time in range(3):
            growth = objects.growth[:, place] ** (time - 1)
            # By whole pixels, so that nothing is blurred in the frame that is asked about.
            moved = ((centre - origin) * height / 2).round() * 2 / height + (time - 1) * way
            put = _put(piece, where, origin + moved, growth, origin)
            mask = put[:, 3:] * _among(kind, [k for k in range(5) if time in _THERE[k]])
            changed = shown[time] + mask * (put[:, :3] - shown[time])
            if time == 1:
                seen = (changed - shown[1]).abs().amax(1) > _VISIBLE
                # What a later object covers is not to be seen any more.
                lost = torch.maximum(lost * (mask[:, 0] < 0.5), seen * _among(kind, [LOST])[:, 0])
            shown[time] = changed
    return torch.stack(shown, 1), covered(lost, cells)


def covered(pixels: Tensor, cells: tuple[int, int]) -> Tensor:
    """The cells of which enough shows an object, float [B, h, w] in {0, 1}.

    Args:
        pixels: float [B, H, W] in [0, 1]: how much of each shows it.
        cells: (h, w), which divide H and W.
    """
    size = (pixels.shape[-2] // cells[0], pixels.shape[-1] // cells[1])
    return (F.avg_pool2d(pixels.unsqueeze(1), size)[:, 0] > _COVERED).float()


def standing_out(frames: Tensor) -> Tensor:
    """How much each pixel differs from its wider surroundings, [B, 3, H, W] -> [B, H, W]."""
    half = frames.shape[-1] // 8
    around = frames
    for window, padding in (((1, 2 * half + 1), (0, half)), ((2 * half + 1, 1), (half, 0))) * 2:
        around = F.avg_pool2d(around, window, 1, padding, count_include_pad=False)
    difference = (frames - around).abs().amax(1, keepdim=True)
    return F.avg_pool2d(difference, 3, 1, 1, count_include_pad=False)[:, 0]


def cut(frames: Tensor, standing: Tensor, centre: Tensor, radius: Tensor, phase: Tensor) -> Tensor:
    """What stands out around a place, and how much of each pixel belongs to it: [B, 4, H, W].

    Args:
        frames: float [B, 3, H, W].
        standing: of them, [B, H, W].
        centre: [B, 2], x and y.
        radius: [B, 2].
        phase: [B].
    """
    height, width = frames.shape[-2:]
    where = _positions(height, width, frames.device)
    offset = (where - centre[:, None, None]) / radius[:, None, None]
    angle = torch.atan2(offset[..., 1], offset[..., 0])
    wave = phase[:, None, None]
    outline = 1 + 0.25 * (3 * angle + wave).sin() + 0.15 * (5 * angle + 2 * wave).sin()
    pixels = radius.amin(1)[:, None, None] * frames.shape[-1] / 2
    blob = ((outline - offset.norm(dim=-1)) * pixels).clamp(0, 1)
    most = (blob * standing).amax((1, 2), keepdim=True).clamp_min(1e-3)
    own = ((standing / most - _OUTLINE) * _CRISP).clamp(0, 1)
    return torch.cat([frames, (blob * own).unsqueeze(1)], 1)


def _positions(height: int, width: int, device: torch.device) -> Tensor:
    """x and y of each pixel, [H, W, 2]."""
    y = (torch.arange(height, device=device) + 0.5) * 2 / height - 1
    x = (torch.arange(width, device=device) + 0.5) * 2 / width - 1
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)


def _most(standing: Tensor, share: Tensor, where: Tensor) -> Tensor:
    """Places drawn as often as they stand out, squared: [B, H, W], [B] in [0, 1) -> [B, 2]."""
    chances = standing.square().flatten(1).double().cumsum(1)
    drawn = torch.searchsorted(chances, share[:, None].double() * chances[:, -1:], right=True)
    return where.flatten(0, 1)[drawn[:, 0].clamp_max(chances.shape[1] - 1)]


def _among(kind: Tensor, kinds: list[int]) -> Tensor:
    """1.0 where the kind is one of these, else 0.0: [B, 1, 1, 1]."""
    return torch.isin(kind, torch.tensor(kinds, device=kind.device)).float().view(-1, 1, 1, 1)


def _put(piece: Tensor, where: Tensor, to: Tensor, growth: Tensor, origin: Tensor) -> Tensor:
    """A piece [B, 4, H, W] that is centred on ``origin``, moved and grown; nothing around it."""
    relative = (where - to[:, None, None]) / growth[:, None, None, None]
    return F.grid_sample(piece, relative + origin[:, None, None], align_corners=False)

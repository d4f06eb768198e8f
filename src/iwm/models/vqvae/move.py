"""What a token of the next frame copies from the present one.

Much of a next frame is the present one, moved: the view turns, a sprite walks. Each token is
told a soft choice among the present tokens near by (the kernels of dynamic neural advection,
arXiv 1605.07157, on code vectors), and values near to what it so copies begin as the likelier.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from iwm.models.vqvae.config import QuantiserConfig
from iwm.models.vqvae.quantiser import Quantiser


class Move(nn.Module):
    """A copied vector for each token, and what it says of the next digits.

    Args:
        quantiser: of the tokens.
        detail: channels of the features.
        reach: tokens up and down, and to the sides, from which may be copied.
    """

    def __init__(self, quantiser: QuantiserConfig, detail: int, reach: tuple[int, int]) -> None:
        super().__init__()
        self.reach = reach
        near = (2 * reach[0] + 1) * (2 * reach[1] + 1)
        self.choose = nn.Conv2d(detail, near, 1)
        self.trust = nn.Conv2d(detail, len(quantiser.digits), 1)
        self.taken = nn.Conv2d(quantiser.width, detail, 1)
        stay = torch.zeros(near)
        stay[near // 2] = 6.0
        self.choose.bias = nn.Parameter(stay)
        self.trust.bias = nn.Parameter(torch.full((len(quantiser.digits),), 3.0))
        nn.init.normal_(self.choose.weight, std=0.1 / detail**0.5)
        nn.init.zeros_(self.trust.weight)

    def forward(
        self,
        features: Tensor,
        present: Tensor,
        quantiser: Quantiser,
        choices: Tensor | None = None,
    ) -> Moved:
        """Copy.

        Args:
            features: [M, detail, h, w].
            present: code vectors [M, d, h, w] of the present frame.
            quantiser: knows the values of the digits.
            choices: logits [M, near, h, w] to use instead of its own.
        """
        shares = (self.choose(features) if choices is None else choices).float().softmax(1)
        if not self.training:
            shares = settle(shares, 1)
        copied = carry(present, shares, self.reach)
        trust = F.softplus(self.trust(features)).permute(0, 2, 3, 1)
        likely = [
            -trust[..., place : place + 1] * distance
            for place, distance in enumerate(quantiser.distances(copied.permute(0, 2, 3, 1)))
        ]
        return Moved(features + self.taken(copied), torch.cat(likely, -1), copied, shares)


@dataclass(frozen=True)
class Moved:
    """What :class:`Move` makes of M frames."""

    features: Tensor
    """[M, detail, h, w], which know what was copied."""
    logits: Tensor
    """[M, h, w, sum(digits)]: values near to what was copied are likelier."""
    copied: Tensor
    """Code vectors [M, d, h, w]."""
    shares: Tensor
    """[M, near, h, w]: of each token near by in what was copied, in order of rows."""

    def first(self, count: int) -> Moved:
        """Of the first frames."""
        parts = (self.features, self.logits, self.copied, self.shares)
        return Moved(*(part[:count] for part in parts))


def settle(shares: Tensor, dim: int) -> Tensor:
    """Shares along a dimension, those that are more than half taken for the whole.

    Of what is in doubt the mean is the best guess; what is likelier than not is taken as it
    is, so that what stands still stays the same, bit for bit.
    """
    most, which = shares.max(dim, keepdim=True)
    return torch.where(most > 0.5, torch.zeros_like(shares).scatter_(dim, which, 1.0), shares)


def carry(things: Tensor, shares: Tensor, reach: tuple[int, int]) -> Tensor:
    """Things at tokens [M, C, h, w], moved: at each token the mean of those near by.

    Args:
        things: beyond the edge they are as at the edge.
        shares: [M, (2 down + 1) * (2 across + 1), h, w], in order of rows of where from.
        reach: (down, across).
    """
    rows, columns = things.shape[-2:]
    edges = F.pad(things, (reach[1], reach[1], reach[0], reach[0]), mode="replicate")
    moved = torch.zeros_like(things)
    # One shift after another: an im2col of all of them takes twenty times as long.
    for place, share in enumerate(torch.split(shares, 1, dim=1)):
        down, across = divmod(place, 2 * reach[1] + 1)
        moved = moved + share * edges[:, :, down : down + rows, across : across + columns]
    return moved

"""Numbers into few characters: scalar quantisers, and how many levels each number is worth.

A code of L characters is one integer in base 92, written in mixed radix: number i takes one of
``levels[i]`` values. Encoder and decoder derive the levels from L alone, so a code carries
nothing but its own digits, and a shorter one is a coarser picture of the same thing.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from iwm.errors import DataError

Floats = npt.NDArray[np.float32]

ALPHABET = "".join(chr(i) for i in range(33, 127) if chr(i) not in '"\\')
"""Printable ASCII that JSON writes as it is; one byte each."""
BITS_PER_CHARACTER = math.log2(len(ALPHABET))
MAX_LEVELS = 512
_PLACE = {character: value for value, character in enumerate(ALPHABET)}


def clip(levels: int) -> float:
    """Where a uniform quantiser of a Gaussian should end, in standard deviations.

    A line through the optima of Max (1960), table II, which it meets within 2 %.
    """
    return 1.25 + 0.35 * math.log2(levels)


@lru_cache(maxsize=1)
def _distortions() -> npt.NDArray[np.float64]:
    """[MAX_LEVELS + 1]: mean squared error of n levels on a standard Gaussian; [0] is unused."""
    normal = NormalDist()
    count = 2048
    values = np.array([normal.inv_cdf((i + 0.5) / count) for i in range(count)])
    found = np.ones(MAX_LEVELS + 1)
    for levels in range(2, MAX_LEVELS + 1):
        half = clip(levels)
        step = 2 * half / levels
        cell = np.clip(np.floor((values + half) / step), 0, levels - 1)
        found[levels] = np.mean((values - ((cell + 0.5) * step - half)) ** 2)
    return np.minimum.accumulate(found)


def allocate(sigma: Sequence[float], bits: float) -> tuple[int, ...]:
    """How many levels each number gets: always the one that gains most per bit.

    Args:
        sigma: standard deviations, of any order.
        bits: of all together.

    Returns:
        Levels, 1 for a number that is not sent; the product is at most ``2 ** bits``.
    """
    distortion = _distortions()
    levels = [1] * len(sigma)

    def gain(place: int) -> tuple[float, float, int]:
        n = levels[place]
        cost = math.log2((n + 1) / n)
        won = sigma[place] ** 2 * float(distortion[n] - distortion[n + 1])
        return -won / cost, cost, place

    queue = [gain(place) for place in range(len(sigma)) if sigma[place] > 0]
    heapq.heapify(queue)
    left = bits - 1e-9
    while queue:
        _, cost, place = heapq.heappop(queue)
        if cost > left:
            continue
        left -= cost
        levels[place] += 1
        if levels[place] < MAX_LEVELS:
            heapq.heappush(queue, gain(place))
    return tuple(levels)


@dataclass(frozen=True, eq=False)
class Layout:
    """What a code of one length holds: which numbers, in how many levels, over which range."""

    size: int
    """K, of all numbers."""
    places: npt.NDArray[np.int64]
    """[J], of those that are sent."""
    levels: tuple[int, ...]
    """J."""
    halves: npt.NDArray[np.float64]
    """[J]: a number lies between minus this and this."""

    @classmethod
    def of(cls, sigma: Floats, length: int) -> Layout:
        """For numbers of deviations [K] in ``length`` characters."""
        levels = np.array(allocate(sigma.tolist(), length * BITS_PER_CHARACTER))
        places = np.flatnonzero(levels > 1)
        sent = tuple(int(n) for n in levels[places])
        halves = np.array([clip(n) for n in sent]) * sigma[places].astype(np.float64)
        return cls(len(sigma), places, sent, halves)

    def write(self, numbers: Floats, length: int) -> str:
        """Numbers [K] as ``length`` characters."""
        steps = np.array(self.levels) / (2 * self.halves)
        cells = np.floor((numbers[self.places] + self.halves) * steps)
        value = 0
        for n, cell in zip(self.levels, cells.tolist(), strict=True):
            value = value * n + min(max(int(cell), 0), n - 1)
        characters = []
        for _ in range(length):
            value, digit = divmod(value, len(ALPHABET))
            characters.append(ALPHABET[digit])
        return "".join(characters)

    def read(self, code: str) -> Floats:
        """Numbers [K] of a code; those that were not sent are 0.

        Raises:
            DataError: a character that no code has, or digits beyond every level.
        """
        value = 0
        try:
            for character in reversed(code):
                value = value * len(ALPHABET) + _PLACE[character]
        except KeyError:
            raise DataError("plan: holds a character that no plan has") from None
        cells = []
        for n in reversed(self.levels):
            value, cell = divmod(value, n)
            cells.append(cell)
        if value:
            raise DataError("plan: is no code of this length")
        numbers = np.zeros(self.size, np.float32)
        middle = (np.array(cells[::-1]) + 0.5) * (2 / np.array(self.levels)) - 1
        numbers[self.places] = middle * self.halves
        return numbers

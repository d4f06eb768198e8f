"""Parts of a global batch. Collectives are stood in for; real ones run in tests/unit/training."""

from __future__ import annotations

from unittest import mock

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, distributed, nn
from torch.nn import functional as F

from iwm.objectives.collapse import covariance_loss, sigreg_loss, variance_loss
from iwm.objectives.gather import Part

SIZES = st.lists(st.integers(2, 5), min_size=1, max_size=4).map(tuple)


def parts(sizes: tuple[int, ...]) -> list[Part]:
    return [Part(rank, sizes) for rank in range(len(sizes))]


@given(SIZES)
def test_parts_tile_the_batch(sizes: tuple[int, ...]) -> None:
    rows = list(range(sum(sizes)))
    assert [row for part in parts(sizes) for row in rows[part.rows]] == rows


@given(SIZES, st.data())
def test_the_same_global_rows_are_marked_however_they_are_split(
    sizes: tuple[int, ...], data: st.DataObject
) -> None:
    total = sum(sizes)
    count = data.draw(st.integers(0, total))
    whole = Part.whole(total).spread(count)
    assert whole.sum() == count
    split = [part.spread(count) for part in parts(sizes)]
    assert torch.equal(torch.cat(split), whole)
    for marked, size in zip(split, sizes, strict=True):
        assert abs(float(marked.sum()) - count * size / total) <= 1


@given(SIZES, st.integers(0, 100))
def test_weighted_means_average_to_the_mean_of_all_rows(sizes: tuple[int, ...], seed: int) -> None:
    values = torch.rand(sum(sizes), generator=torch.Generator().manual_seed(seed)).double()
    weighted = [
        part.weight(size, part.total) * values[part.rows].mean()
        for part, size in zip(parts(sizes), sizes, strict=True)
    ]
    torch.testing.assert_close(torch.stack(weighted).mean(), values.mean())


def statistics(latents: Tensor, projector: nn.Module, directions: Tensor) -> Tensor:
    spread = variance_loss(latents) + covariance_loss(latents)
    return spread + sigreg_loss(projector(latents.float()), directions)


@settings(max_examples=15, deadline=None)
@given(SIZES, st.integers(0, 100))
def test_gradients_averaged_over_processes_are_those_of_one(
    sizes: tuple[int, ...], seed: int
) -> None:
    torch.manual_seed(seed)
    rows = torch.randn(sum(sizes), 6)
    directions = torch.randn(6, 16)
    first, projector = nn.Linear(6, 6), nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6))
    trained = [*first.parameters(), *projector.parameters()]

    def gradients(part: Part) -> list[Tensor]:
        def stand_in(places: list[Tensor], _: Tensor) -> None:
            for place, other in zip(places, parts(part.sizes), strict=True):
                found = first(rows[other.rows]).detach()
                place.copy_(F.pad(found, (0, 0, 0, len(place) - len(found))))

        for parameter in trained:
            parameter.grad = None
        with mock.patch.object(distributed, "all_gather", stand_in):
            statistics(part.gather(first(rows[part.rows])), projector, directions).backward()
        return [parameter.grad for parameter in trained if parameter.grad is not None]

    expected = gradients(Part.whole(len(rows)))
    found = [gradients(part) for part in parts(sizes)]
    assert len(expected) == len(trained)
    for index, gradient in enumerate(expected):
        mean = torch.stack([each[index] for each in found]).mean(0)
        torch.testing.assert_close(mean, gradient, atol=2e-4, rtol=1e-3)

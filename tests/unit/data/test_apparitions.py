from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from iwm.data.apparitions import (
    COME,
    FLASH,
    KEPT,
    LOST,
    NONE,
    ApparitionConfig,
    Apparitions,
    cut,
    paste,
    sample_apparitions,
    standing_out,
)

SIZE, CELLS = 64, (16, 16)


def field_with_a_spot(at: tuple[int, int] = (40, 20)) -> Tensor:
    """A grey field, float [1, 3, 64, 64], with a red square of 8 pixels at row, column."""
    frame = torch.full((1, 3, SIZE, SIZE), 0.4)
    frame[:, :, at[0] : at[0] + 8, at[1] : at[1] + 8] = torch.tensor([1.0, 0, 0]).view(3, 1, 1)
    return frame


def drawn(kind: int, n: int = 1) -> Apparitions:
    """One object a run: the most prominent thing of the frame itself, put at x = 0.5."""
    config = ApparitionConfig(count=1, untouched=0.0, own=1.0, tinted=0.0)
    found = sample_apparitions(n, config, torch.Generator().manual_seed(0))
    return dataclasses.replace(
        found,
        kind=torch.full((n, 1), kind),
        centre=torch.tensor([0.5, 0.0]).expand(n, 1, 2),
        radius=torch.full((n, 1, 2), 0.3),
        way=torch.tensor([-0.1, 0.0]).expand(n, 1, 2),
        source=torch.full((n, 1), 0.5),
        growth=torch.ones(n, 1),
    )


def red(frames: Tensor, time: int) -> int:
    """Red pixels of a frame in its right half; the square itself is in the left one."""
    frame = frames[0, time]
    return int(((frame[0] > 0.8) & (frame[1] < 0.2))[:, 32:].sum())


@pytest.mark.parametrize(
    ("kind", "times"),
    [(NONE, ()), (LOST, (0, 1)), (KEPT, (0, 1, 2)), (COME, (2,)), (FLASH, (1,))],
)
def test_an_object_is_where_its_kind_says(kind: int, times: tuple[int, ...]) -> None:
    frame = field_with_a_spot()
    before = torch.stack([frame] * 3, 1)
    frames, lost = paste(before, drawn(kind), frame, CELLS)
    assert tuple(time for time in range(3) if red(frames, time) >= 20) == times
    assert torch.equal(frames[..., :32], before[..., :32]), "what was there stays"
    assert lost.shape == (1, *CELLS)
    assert bool(lost.any()) == (kind == LOST)
    if kind == LOST:
        rows, columns = lost[0].nonzero().T
        assert 8 <= int(rows.min()) <= int(rows.max()) <= 13, "as high as it was"
        assert 11 <= int(columns.min()) <= int(columns.max()) <= 15


def test_what_stands_out_is_cut_along_its_outline() -> None:
    frame = field_with_a_spot()
    standing = standing_out(frame)
    inside = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    inside[40:48, 20:28] = True
    assert float(standing[0][inside].min()) > float(standing[0][~inside].median())
    centre = torch.tensor([[24.0, 44.0]]) * 2 / SIZE - 1
    piece = cut(frame, standing, centre, torch.full((1, 2), 0.3), torch.zeros(1))
    belongs = piece[0, 3] > 0.5
    assert int((belongs & inside).sum()) >= 48, "most of the square"
    assert int((belongs & ~inside).sum()) <= 48, "and little of the field"


@settings(deadline=None, max_examples=20)
@given(n=st.integers(1, 6), seed=st.integers(0, 2**31), data=st.data())
def test_runs_do_not_depend_on_how_the_batch_is_split(
    n: int, seed: int, data: st.DataObject
) -> None:
    objects = sample_apparitions(n, ApparitionConfig(), torch.Generator().manual_seed(seed))
    frames = torch.rand(n, 3, 3, 32, 32, generator=torch.Generator().manual_seed(seed))
    whole = paste(frames, objects, frames[:, 1], (8, 8))
    cut_at = data.draw(st.integers(0, n))
    for rows in (slice(0, cut_at), slice(cut_at, n)):
        part = paste(frames[rows], objects.rows(rows), frames[:, 1], (8, 8))
        for one, all_of_them in zip(part, whole, strict=True):
            torch.testing.assert_close(one, all_of_them[rows])
    assert 0 <= float(whole[0].min()) <= float(whole[0].max()) <= 1
    assert set(whole[1].unique().tolist()) <= {0.0, 1.0}


def test_shares_of_kinds_are_as_configured() -> None:
    config = ApparitionConfig(untouched=0.25, kinds=(0.5, 0.25, 0.125, 0.0625))
    kind = sample_apparitions(20_000, config, torch.Generator().manual_seed(0)).kind
    shares = torch.bincount(kind.flatten(), minlength=5) / kind.numel()
    drawn = 0.75 * torch.tensor([0.0625, 0.5, 0.25, 0.125, 0.0625])
    wanted = drawn + torch.tensor([0.25, 0, 0, 0, 0])
    torch.testing.assert_close(shares, wanted, atol=0.01, rtol=0)

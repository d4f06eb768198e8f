from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from iwm.data.config import MaskConfig
from iwm.data.masking import sample_masks


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 40), st.integers(2, 14), st.integers(2, 14))
def test_visible_and_hidden_never_meet_and_both_exist(
    seed: int, n: int, rows: int, columns: int
) -> None:
    mask = sample_masks(n, (rows, columns), MaskConfig(), torch.Generator().manual_seed(seed))
    tokens = rows * columns
    assert mask.visible.shape[0] == mask.hidden.shape[0] == n
    assert mask.visible.shape[1] >= 1
    assert mask.hidden.shape[1] >= 1
    for seen, unseen in zip(mask.visible.tolist(), mask.hidden.tolist(), strict=True):
        assert len(set(seen)) == len(seen)
        assert len(set(unseen)) == len(unseen)
        assert not set(seen) & set(unseen)
        assert set(seen) | set(unseen) <= set(range(tokens))


def test_at_least_the_configured_share_stays_visible() -> None:
    config = MaskConfig(max_share=0.5)
    mask = sample_masks(200, (14, 14), config, torch.Generator().manual_seed(0))
    assert mask.visible.shape[1] >= 98


def test_one_block_is_a_rectangle_of_the_wanted_area() -> None:
    config = MaskConfig(blocks=1, area=(0.15, 0.2))
    mask = sample_masks(20, (14, 14), config, torch.Generator().manual_seed(3))
    for tokens in mask.hidden:
        rows, columns = (tokens // 14).unique(), (tokens % 14).unique()
        assert len(rows) * len(columns) == len(tokens)
        assert len(rows) == int(rows.max() - rows.min()) + 1
        assert 0.12 <= len(tokens) / 196 <= 0.23


def test_masks_that_hide_everything_are_replaced() -> None:
    config = MaskConfig(blocks=50, area=(0.3, 0.4), max_share=0.5)
    mask = sample_masks(8, (4, 4), config, torch.Generator().manual_seed(0))
    assert mask.visible.shape[1] >= 8


def test_the_same_seed_gives_the_same_masks() -> None:
    one, two = (
        sample_masks(8, (8, 8), MaskConfig(), torch.Generator().manual_seed(1)) for _ in range(2)
    )
    assert torch.equal(one.visible, two.visible)
    assert torch.equal(one.hidden, two.hidden)
    half = one.rows(slice(4, 8))
    assert torch.equal(half.visible, two.visible[4:])

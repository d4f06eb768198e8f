from __future__ import annotations

import numpy as np

from benchmarks.sprite_limits import frames, measure, smoothed


def test_only_the_background_loses_its_grain() -> None:
    (frame, background), *_ = frames(2)
    plain = smoothed(frame, background, 8)
    sprites = (frame != background).any(-1)
    assert sprites.any()
    np.testing.assert_array_equal(plain[sprites], frame[sprites])
    tile = smoothed(background, background, 8)[:8, :8]
    assert (tile == tile[0, 0]).all()
    # Grain is 0 to 15 on one colour.
    assert np.ptp(background[:8, :8].astype(int), axis=(0, 1)).max() <= 15
    assert np.abs(plain.astype(int) - frame).max() <= 15


def test_finer_means_are_nearer_and_jpeg_shards_farther() -> None:
    found = measure(4)
    tile, four, two = (
        found["png"][name]
        for name in ("one colour a tile", "means of 4x4 pixels", "means of 2x2 pixels")
    )
    assert tile["psnr"] < four["psnr"] < two["psnr"]
    assert tile["ssim"] < four["ssim"] < two["ssim"]
    assert "jpeg" not in found["png"]
    assert found["jpeg"]["one colour a tile"]["psnr"] < tile["psnr"]

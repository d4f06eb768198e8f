"""Frame statistics against independent oracles: numpy, SciPy, imagehash, hashlib."""

import hashlib

import imagehash
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from scipy.ndimage import convolve

from iwm.gameplay.quality import frame_statistics, hamming, perceptual_hashes

LAPLACE = np.array([[0, 1, 0], [1, -4, 1], [0, 1, 0]])

images = hnp.arrays(
    np.uint8,
    st.tuples(st.integers(8, 70), st.integers(8, 70), st.just(3)),
    fill=st.integers(0, 255),
)


@settings(max_examples=60, deadline=None)
@given(images)
def test_moments_sharpness_and_digest(image: np.ndarray) -> None:
    figures = frame_statistics(image)
    luma = image.astype(float) @ [0.299, 0.587, 0.114]
    assert figures.luma_mean == pytest.approx(luma.mean(), abs=0.51)  # luma is rounded per pixel
    assert figures.luma_std == pytest.approx(luma.std(), abs=0.51)
    grey = np.asarray(Image.fromarray(image).convert("L")).astype(float)
    assert figures.luma_mean == pytest.approx(grey.mean())
    assert figures.luma_std == pytest.approx(grey.std(), abs=1e-6)
    inside = convolve(grey, LAPLACE)[1:-1, 1:-1]
    assert figures.sharpness == pytest.approx(inside.var(), abs=1e-6)
    assert figures.sha1 == hashlib.sha1(image.tobytes()).digest()


@settings(max_examples=60, deadline=None)
@given(st.lists(images, max_size=4))
def test_perceptual_hash_is_imagehash_bit_for_bit(pictures: list[np.ndarray]) -> None:
    thumbnails = [frame_statistics(picture).thumbnail for picture in pictures]
    hashes = perceptual_hashes(np.array(thumbnails, np.uint8).reshape(-1, 32, 32))
    oracle = [int(str(imagehash.phash(Image.fromarray(picture))), 16) for picture in pictures]
    assert hashes.tolist() == oracle


def test_hash_of_a_noisy_copy_is_near_and_of_another_picture_far() -> None:
    generator = np.random.default_rng(0)
    small = generator.integers(0, 256, (2, 6, 8, 3), dtype=np.uint8)
    first, other = (np.asarray(Image.fromarray(part).resize((160, 120))) for part in small)
    noisy = np.clip(first + generator.normal(0, 4, first.shape), 0, 255).astype(np.uint8)
    thumbnails = np.stack(
        [frame_statistics(picture).thumbnail for picture in (first, noisy, other)]
    )
    hashes = perceptual_hashes(thumbnails)
    near, far = hamming(hashes[:1], hashes[1:])
    assert near <= 4
    assert far >= 16


def test_a_view_that_is_not_contiguous_is_measured_as_its_copy() -> None:
    image = np.random.default_rng(1).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    view = image[:, ::-1]
    assert frame_statistics(view).sha1 == frame_statistics(view.copy()).sha1

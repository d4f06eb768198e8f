"""PSNR, SSIM, LPIPS and JPEG at a bit budget, against what is known of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fixtures import episode_frames
from hypothesis import given, settings
from hypothesis import strategies as st

from iwm.evaluation import jpeg, pixels


def pictures(count: int = 4, size: int = 64) -> torch.Tensor:
    return torch.from_numpy(episode_frames(0, count, size)[0])


def test_psnr_of_known_noise() -> None:
    true = torch.full((2, 32, 32, 3), 100, dtype=torch.uint8)
    made = true.clone()
    made[0] += 5
    found = pixels.psnr(made, true)
    assert found[0] == pytest.approx(10 * np.log10(255**2 / 25))
    assert found[1] == pixels.CEILING_DB  # alike: not infinite, so that means stay means


def test_psnr_is_torchmetrics() -> None:
    from torchmetrics.functional.image import peak_signal_noise_ratio

    true = pictures()
    made = (true.float() + 20 * torch.randn(true.shape)).clamp(0, 255).byte()
    for ours, one, other in zip(pixels.psnr(made, true), made, true, strict=True):
        theirs = peak_signal_noise_ratio(one.float(), other.float(), data_range=255.0)
        assert ours == pytest.approx(float(theirs), abs=1e-4)


def test_psnr_of_moving_pixels_looks_at_no_others() -> None:
    before = torch.zeros(2, 32, 32, 3, dtype=torch.uint8)
    true = before.clone()
    true[0, :8, :8] = 200  # 64 pixels move in the first, a single one in the second
    true[1, 0, 0] = 200
    where = pixels.moved(true, before)
    assert where.sum((1, 2)).tolist() == [64, 1]
    made = before.clone()
    made[0, 16:] = 255  # far off, where nothing moves
    found = pixels.psnr(made, true, where)
    assert found[0] == pytest.approx(10 * np.log10(255**2 / 200**2))
    assert np.isnan(found[1])


def test_ssim_of_pictures_that_are_alike_is_one() -> None:
    true = pictures(3)
    assert pixels.ssim(true, true) == pytest.approx(np.ones(3), abs=1e-4)
    assert (pixels.ssim(255 - true, true) < 0.5).all()


def test_lpips_is_left_out_without_weights_and_taken_with_them(
    tmp_path: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torchvision

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert pixels.lpips_network() is None
    folder = tmp_path / "hub/checkpoints"  # type: ignore[operator]
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    weights = torchvision.models.squeezenet1_1().state_dict()
    torch.save(weights, folder / "squeezenet1_1-b8a52dc0.pth")
    found = pixels.lpips_network()
    assert found is not None
    assert found[0] == "squeeze"
    true = pictures(2)
    distance = pixels.lpips(torch.stack([true[0], 255 - true[1]]), true, found[0])
    assert distance[0] == pytest.approx(0, abs=1e-6)
    assert distance[1] > 1e-4


@settings(max_examples=25, deadline=None)
@given(bits=st.integers(0, 40_000), seed=st.integers(0, 50), size=st.sampled_from([16, 40, 64]))
def test_jpeg_never_exceeds_its_budget(bits: int, seed: int, size: int) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (size, size, 3)).astype(np.uint8)
    decoded, spent = jpeg.stream(image, bits)
    assert decoded.shape == image.shape
    assert 8 * spent <= bits
    decoded, spent = jpeg.at_budget(image, bits)
    assert decoded.shape == image.shape
    if 8 * spent > bits:  # then it is the smallest file, whatever is asked for
        assert jpeg.at_budget(image, 0)[1] == spent


def test_jpeg_gets_better_with_its_budget_and_spends_it() -> None:
    image = pictures(1)[0].numpy()
    for through in (jpeg.stream, jpeg.at_budget):
        before = -1.0
        for bits in (3000, 4000, 8000, 20000):
            decoded, spent = through(image, bits)
            found = float(pixels.psnr(torch.from_numpy(decoded), torch.from_numpy(image)))
            assert found > before
            assert 0.5 * bits / 8 < spent <= bits / 8
            before = found
    assert jpeg.stream(image, 100)[1] == 3  # a colour
    assert jpeg.stream(image, 8)[1] == 0  # nothing


def test_a_scan_is_counted_without_its_header() -> None:
    from simplejpeg import encode_jpeg

    encoded = encode_jpeg(pictures(1)[0].numpy(), quality=50)
    assert 0 < jpeg.scan_bytes(encoded) < len(encoded) - 500
    with pytest.raises(ValueError, match="no scan"):
        jpeg.scan_bytes(b"\xff\xd8\xff\xe0\x00\x10")

"""The engine: shapes, calibration, threads, devices, damaged folders."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from tinymodel import AUG_DIM, PATCHES, SIZE, WIDTH, write_model

from iwm.errors import ConfigError, ModelError
from iwm.serving.calibration import Calibration
from iwm.serving.engine import Engine
from iwm.serving.preprocess import Preprocess


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def engine(folder: Path) -> Engine:
    return Engine.load(folder, "cpu")


def images(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, SIZE, SIZE, 3), np.uint8)


def test_shapes(engine: Engine) -> None:
    latents = engine.encode(images(3))
    assert latents.z_cls.shape == (3, WIDTH)
    assert latents.z_patches.shape == (3, PATCHES, WIDTH)
    actions = np.zeros((3, 4, AUG_DIM), np.float32)
    alone = engine.rollout(latents.z_cls, actions)
    assert (alone.z_cls.shape, alone.z_patches) == ((3, 4, WIDTH), None)
    full = engine.rollout(latents.z_cls, actions, latents.z_patches)
    assert full.z_patches is not None
    assert full.mrr is not None
    assert full.z_patches.shape == (3, 4, PATCHES, WIDTH)
    assert full.mrr.shape == (3, 4)


def test_a_batch_is_its_rows(engine: Engine) -> None:
    together = engine.encode(images(5)).z_cls
    for row, image in enumerate(images(5)):
        np.testing.assert_allclose(
            engine.encode(np.stack([image])).z_cls[0], together[row], atol=1e-5
        )


def test_threads_do_not_disturb_each_other(engine: Engine) -> None:
    def work(seed: int) -> np.ndarray:
        latents = engine.encode(images(2, seed))
        return engine.predict(latents.z_cls, np.full((2, AUG_DIM), 0.1, np.float32)).z_cls

    alone = [work(seed) for seed in range(16)]
    with ThreadPoolExecutor(4) as pool:
        for one, other in zip(alone, pool.map(work, range(16)), strict=True):
            np.testing.assert_allclose(one, other, atol=1e-5)


def test_figures_are_read_off_the_tables(folder: Path) -> None:
    calibration = Calibration.read(folder / "calibration.json")
    mrr, uncertainty = calibration.cls_only(np.log(np.array([0.5, 1.0, 100.0], np.float32)))
    np.testing.assert_allclose(uncertainty, [0.45, 0.8, 3.0], atol=1e-6)
    np.testing.assert_allclose(mrr, [1 - 0.225, 0.6, 0.1], atol=1e-6)


def test_without_calibration_there_are_no_figures(tmp_path: Path) -> None:
    write_model(tmp_path / "m")
    (tmp_path / "m/calibration.json").unlink()
    engine = Engine.load(tmp_path / "m", "cpu")
    out = engine.predict(np.zeros((1, WIDTH), np.float32), np.zeros((1, AUG_DIM), np.float32))
    assert (out.mrr, out.uncertainty) == (None, None)


@pytest.mark.parametrize("name", ["cuda:99", "tpu", "nonsense", "meta", "cpu:x"])
def test_an_unknown_device_is_an_error(folder: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="IWM_DEVICE: no device"):
        Engine.load(folder, name)


@pytest.mark.parametrize("damage", ["gone", "config", "weights", "calibration"])
def test_damaged_folders_are_one_line(tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "m"
    if damage != "gone":
        write_model(folder)
    if damage == "config":
        (folder / "config.json").write_text("{")
    if damage == "weights":
        (folder / "model.safetensors").write_bytes(b"\x80\x04pickle")
    if damage == "calibration":
        (folder / "calibration.json").write_text('{"surprise_scale": 1}')
    with pytest.raises(ModelError) as caught:
        Engine.load(folder, "cpu")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("fit", "shape", "column"), [("crop", (32, 64), 16), ("resize", (32, 64), None)]
)
def test_fit(fit: str, shape: tuple[int, int], column: int | None) -> None:
    image = np.zeros((*shape, 3), np.uint8)
    image[:, :16] = 255  # a quarter at the left: cropped away, or squeezed in
    fitted = Preprocess((32, 32), fit)(image)
    assert fitted.shape == (32, 32, 3)
    assert fitted[:, 0].mean() == (0 if column else 255)


@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (500, 1), (33, 31)])
def test_any_shape_fits(shape: tuple[int, int]) -> None:
    for fit in ("crop", "resize"):
        assert Preprocess((32, 32), fit)(np.zeros((*shape, 3), np.uint8)).shape == (32, 32, 3)

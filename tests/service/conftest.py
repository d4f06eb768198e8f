"""One real service for the tests that may share it: every kind of model that can be served."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tinydreams import write_dreams
from tinyembodied import write_embodied
from tinymodel import write_action_model, write_model

from pipelines._served import Served, served

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of five models by variant; ``action`` answers, ``vqvae-dynamics`` dreams,
    ``embodied`` imagines states.
    """
    folder = tmp_path_factory.mktemp("models")
    write_action_model(folder / "action")
    write_model(folder / "invariant", seed=1)
    write_model(folder / "equivariant", seed=2)
    write_dreams(folder / "vqvae-dynamics")
    write_embodied(folder / "embodied")
    return folder


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The image root of :func:`whole`."""
    return tmp_path_factory.mktemp("images")


@pytest.fixture(scope="session")
def whole(models: Path, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A service of all four models that may read images."""
    environ = {
        "IWM_MODEL_PATH": str(models),
        "IWM_IMAGE_ROOT": str(images),
        "IWM_DEVICE": "cpu",
        "PYTHONPATH": str(ROOT),
    }
    scratch = tmp_path_factory.mktemp("whole")
    with served("bentos.iwm:IWM", scratch, environ=environ, wait_s=300) as running:
        yield running

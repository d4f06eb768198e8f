"""The engine that the tests of the service share."""

from __future__ import annotations

import pytest
from tinymodel import write_model

from iwm.serving.engine import Engine


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """A tiny random model, on the CPU. Read only."""
    return Engine.load(write_model(tmp_path_factory.mktemp("model") / "tiny"), "cpu")

"""Fixtures that every test may use."""

from __future__ import annotations

from pathlib import Path

import pytest
from fixtures import write_store
from hypothesis import HealthCheck, settings

from iwm.data.reader import ShardStore

# Machines are noisy: no property is about how long an example takes.
settings.register_profile("iwm", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("iwm")


@pytest.fixture(scope="session")
def tiny_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of shards: 2 recordings of 10 episodes of 24 frames, 64x64. Read only."""
    folder = tmp_path_factory.mktemp("tiny") / "shards"
    write_store(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_store(tiny_shards: Path) -> ShardStore:
    """The store over :func:`tiny_shards`: 288 frames to train, 96 each in val and test."""
    return ShardStore(tiny_shards)

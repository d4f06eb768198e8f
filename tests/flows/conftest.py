from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import toy


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One temporary Prefect server for all flow tests of this process."""
    from prefect.settings import PREFECT_HOME, temporary_settings
    from prefect.testing.utilities import prefect_test_harness

    # Results are stored below PREFECT_HOME, which the harness does not move.
    home = tmp_path_factory.mktemp("prefect")
    with (
        temporary_settings({PREFECT_HOME: home}),
        prefect_test_harness(server_startup_timeout=120),
    ):
        yield


@pytest.fixture
def repo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The toy repository, as the current folder."""
    made = toy.make(tmp_path / "repo")
    monkeypatch.chdir(made)
    monkeypatch.setenv("PATH", toy.path_of_this_environment())
    return made

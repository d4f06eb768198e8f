from __future__ import annotations

import subprocess
import sys
from importlib.metadata import entry_points

import pytest
import toy

from flows.plugin import full_name


@pytest.mark.parametrize(
    ("name", "full"), [("train-iwm", "train-iwm/train-iwm"), ("train-iwm/gpu", "train-iwm/gpu")]
)
def test_one_name_stands_for_both(name: str, full: str) -> None:
    assert full_name(name) == full


def test_the_plugin_is_installed_and_wraps_once() -> None:
    (entry,) = (e for e in entry_points(group="prefect.plugins") if e.name == "iwm")
    assert entry.value == "flows.plugin"
    code = (
        "from prefect.client.orchestration import PrefectClient, SyncPrefectClient;"
        "from flows.plugin import setup_environment;"
        "before = PrefectClient.read_deployment_by_name;"
        "assert before.accepts_one_name;"
        "assert SyncPrefectClient.read_deployment_by_name.accepts_one_name;"
        "setup_environment(ctx=None);"
        "assert PrefectClient.read_deployment_by_name is before"
    )
    # In the repository root prefect.toml switches it on.
    subprocess.run([sys.executable, "-c", code], cwd=toy.ROOT, check=True)

"""The frame itself: the lock, the layout, the direction of imports."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
LOCK = (ROOT / "requirements.lock").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_the_lock_holds_a_version_that_pyproject_allows_for_everything_it_asks() -> None:
    pins = {
        canonicalize_name(name): version
        for name, version in re.findall(r"^([A-Za-z0-9_.-]+)(?:\[[^\]]*\])?==([^ ;]+)", LOCK, re.M)
    }
    wanted = PROJECT["project"]["dependencies"]
    wanted = wanted + PROJECT["project"]["optional-dependencies"]["dev"]
    for line in wanted:
        requirement = Requirement(line)
        version = pins.get(canonicalize_name(requirement.name))
        assert version, f"{line} is not in requirements.lock: run `make lock`"
        assert requirement.specifier.contains(version, prereleases=True), (
            f"requirements.lock has {requirement.name} {version}, pyproject wants {line}"
        )


def test_the_lock_has_hashes_and_no_addresses() -> None:
    assert LOCK.count("--hash=sha256:") > 300
    assert "://" not in LOCK


def test_every_stage_of_the_graph_names_files_that_exist_and_a_module() -> None:
    graph = yaml.safe_load((ROOT / "dvc.yaml").read_text())
    for name, stage in graph["stages"].items():
        stage = stage.get("do", stage)
        module = stage["cmd"].split()[2]
        assert (ROOT / (module.replace(".", "/") + ".py")).is_file(), f"{name}: {module}"
        for path in stage["deps"]:
            if path.startswith(("src/", "pipelines/", "bentos")):
                assert (ROOT / path).exists(), f"{name} depends on {path}, which is not there"


def test_nothing_large_or_private_is_tracked() -> None:
    files = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True
    ).stdout.split(b"\0")
    for name in filter(None, files):
        path = ROOT / name.decode()
        if path.is_file():
            assert path.stat().st_size < 20_000_000, f"{path} is over 20 MB"

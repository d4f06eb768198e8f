from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import toy

from flows import graph
from iwm.errors import ConfigError


def edges_of_dvc_dag(root: Path) -> set[tuple[str, str]]:
    dot = subprocess.run(
        [sys.executable, "-m", "dvc", "dag", "--dot"],
        cwd=root,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    edges = set()
    for line in dot.splitlines():
        above, arrow, below = line.strip().rstrip(";").partition(" -> ")
        if arrow and not above.strip('"').endswith(".dvc"):
            edges.add((above.strip('"'), below.strip('"')))
    return edges


def edges(loaded: graph.Graph) -> set[tuple[str, str]]:
    return {(above, name) for name, before in loaded.upstream.items() for above in before}


@pytest.mark.parametrize("with_data_dvc", [False, True])
def test_equals_dvc_dag_of_a_small_repository(repo: Path, with_data_dvc: bool) -> None:
    if with_data_dvc:
        subprocess.run([sys.executable, "-m", "dvc", "add", "-q", "data"], cwd=repo, check=True)
    loaded = graph.load(repo)
    assert edges(loaded) == edges_of_dvc_dag(repo)
    assert loaded.readers_of_data == {"ingest"}
    assert "train@core" in loaded.upstream
    assert not any(name.endswith(".dvc") for name in loaded.upstream)


def test_equals_dvc_dag_of_this_repository() -> None:
    loaded = graph.load(toy.ROOT)
    assert edges(loaded) == edges_of_dvc_dag(toy.ROOT)
    assert {"ingest", "shard"} <= loaded.readers_of_data


def test_order_is_topological(repo: Path) -> None:
    seen: set[str] = set()
    for name, before in graph.load(repo).upstream.items():
        assert seen >= set(before)
        seen.add(name)


def test_targets_take_what_is_above_them(repo: Path) -> None:
    loaded = graph.load(repo)
    assert set(loaded.up_to(["train"]).upstream) == {"ingest", "train@core", "train@other"}
    assert set(loaded.up_to(["gate@core"]).upstream) == {"ingest", "train@core", "gate@core"}
    assert loaded.only(["register", "package"]).upstream == {
        "register": (),
        "package": ("register",),
    }
    assert loaded.only(["register"]).readers_of_data == frozenset()


def test_unknown_target_is_one_line_with_the_stages(repo: Path) -> None:
    with pytest.raises(ConfigError, match=r"target 'trian' is no stage.*train@core"):
        graph.load(repo).up_to(["trian"])


def test_no_repository_is_the_users_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not inside of a DVC repository"):
        graph.load(tmp_path)


def test_wrong_dvc_yaml_is_the_users_error(repo: Path) -> None:
    (repo / "dvc.yaml").write_text("stages: {a: {comand: x}}\n")
    with pytest.raises(ConfigError, match=r"dvc\.yaml"):
        graph.load(repo)

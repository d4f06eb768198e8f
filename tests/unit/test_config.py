from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from iwm.config import (
    environment_overrides,
    get_dotted,
    load_params,
    merge,
    read_yaml,
    resolve_profile,
    set_dotted,
    write_params,
)
from iwm.errors import ConfigError
from pipelines.strong import RUNS

ROOT = Path(__file__).parents[2]
PROFILES = ROOT / "profiles.yaml"


NAMES = [
    "smoke",
    "sprites",
    "cpu",
    "gpu",
    "dual-gpu",
    "cluster",
    *(run.profile for run in RUNS.values()),
]


@pytest.mark.parametrize("name", NAMES)
def test_every_profile_resolves_and_has_a_gate_for_everything_it_trains(name: str) -> None:
    values = resolve_profile(name, profiles=PROFILES, environ={})
    assert values["profile"] == name
    twins = {found["vrnn"]["single"] for found in values["evaluate"].values() if "vrnn" in found}
    # A twin is what its model is measured against; a trunk, what both go on from.
    trunks = {values["train"][twin]["init_from"] for twin in twins}
    for phase in set(values["train"]) - twins - trunks:
        assert values["evaluate"][phase]
        rules = values["gate"][phase]
        assert rules, f"{phase} has no gate"
        # A gain is a figure in pairs over a baseline.
        compared = [rule for rule in rules if "baseline" in rule or "gain" in rule["figure"]]
        assert compared, f"{phase} compares with no baseline"


def test_a_profile_extends_one_other(tmp_path: Path) -> None:
    document = read_yaml(PROFILES)
    document["profiles"]["gpu"] = {"extends": "smoke", "shard": {"width": 32}}
    path = tmp_path / "profiles.yaml"
    path.write_text(yaml.safe_dump(document))
    values = resolve_profile("gpu", profiles=path, environ={})
    smoke = resolve_profile("smoke", profiles=path, environ={})
    assert values == {**smoke, "profile": "gpu", "shard": {**smoke["shard"], "width": 32}}
    for base in ("gpu", "nothing"):
        document["profiles"]["cluster"] = {"extends": base}
        path.write_text(yaml.safe_dump(document))
        with pytest.raises(ConfigError, match=f"'cluster' extends '{base}'"):
            resolve_profile("cluster", profiles=path, environ={})


def test_the_committed_params_are_the_cpu_profile() -> None:
    assert read_yaml(ROOT / "params.yaml") == resolve_profile("cpu", profiles=PROFILES, environ={})


def test_params_survive_writing_and_reading(tmp_path: Path) -> None:
    values = resolve_profile("smoke", profiles=PROFILES, environ={})
    write_params(values, tmp_path / "params.yaml")
    assert read_yaml(tmp_path / "params.yaml") == values
    assert load_params(tmp_path / "params.yaml", environ={}).profile == "smoke"


def test_environment_overrides_reach_every_phase() -> None:
    environ = {"IWM_BATCH_SIZE": "48", "IWM_EPOCHS": "2", "IWM_LR": "3e-4"}
    values = resolve_profile("cpu", profiles=PROFILES, environ=environ)
    for phase in values["train"].values():
        assert (phase["batch_size"], phase["epochs"], phase["optim"]["lr"]) == (48, 2, 3e-4)


def test_an_override_that_dvc_cannot_see_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    write_params(resolve_profile("cpu", profiles=PROFILES, environ={}), path)
    environ = {"IWM_BATCH_SIZE": "48", "DVC_ROOT": str(tmp_path)}
    with pytest.raises(ConfigError, match=r"IWM_BATCH_SIZE=48.*iwm profile use cpu"):
        load_params(path, environ=environ)
    write_params(resolve_profile("cpu", profiles=PROFILES, environ=environ), path)
    assert load_params(path, environ=environ).train["core"].batch_size == 48


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("train.core.epochs", 0, "train.core.epochs"),
        ("train.core.epochs", "many", "train.core.epochs"),
        ("train.core.epoch", 3, "train.core.epoch"),
        ("record.plans", [], None),
        ("ingest.executor", "spark", "ingest.executor"),
        ("shard.quality", 101, "shard.quality"),
        ("profile", "laptop", "profile"),
    ],
)
def test_a_wrong_value_is_named(key: str, value: object, message: str | None) -> None:
    if message is None:
        resolve_profile("cpu", overrides={key: value}, profiles=PROFILES, environ={})
        return
    with pytest.raises(ConfigError, match=message) as caught:
        resolve_profile("cpu", overrides={key: value}, profiles=PROFILES, environ={})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: [1", "not YAML"),
        (b"- 1\n", "expected a mapping"),
        (b"\xff\xfe\x00", "not YAML"),
        (b"a: {b: 1, b: 2}\n", 'duplicate key "b"'),
    ],
)
def test_a_broken_file_is_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message) as caught:
        load_params(path, environ={})
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_missing_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="iwm profile use"):
        load_params(tmp_path / "params.yaml", environ={})


def test_an_unknown_profile_lists_the_known() -> None:
    with pytest.raises(ConfigError, match="smoke, sprites, cpu, gpu, dual-gpu, cluster"):
        resolve_profile("tpu", profiles=PROFILES, environ={})


def test_an_environment_variable_that_is_no_number() -> None:
    with pytest.raises(ConfigError, match="IWM_LR"):
        environment_overrides({"train": {"core": {}}}, {"IWM_LR": "fast"})


_leaves = st.integers() | st.text(max_size=3) | st.lists(st.integers(), max_size=2)
_trees = st.dictionaries(
    st.sampled_from("abc"),
    st.recursive(_leaves, lambda inner: st.dictionaries(st.sampled_from("abc"), inner)),
    max_size=3,
)


@given(_trees, _trees)
def test_merge_keeps_what_the_overlay_does_not_name(base: dict, over: dict) -> None:
    merged = merge(base, over)
    assert merge(merged, over) == merged
    assert set(merged) == set(base) | set(over)
    assert merge(base, {}) == base
    for key in set(base) - set(over):
        assert merged[key] == base[key]


@given(_trees, st.lists(st.sampled_from("abc"), min_size=1, max_size=3), st.integers())
def test_a_dotted_path_reads_back_what_was_set(tree: dict, parts: list[str], value: int) -> None:
    path = ".".join(parts)
    try:
        set_dotted(tree, path, value)
    except ConfigError:
        return
    assert get_dotted(tree, path) == value
    assert yaml.safe_load(yaml.safe_dump(tree)) == tree

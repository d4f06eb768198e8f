"""Each expectation is broken on purpose, and must be the one that says so."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from iwm.data.config import ValidateConfig
from iwm.data.expectations import Finding, ValidationReport, validate_index
from iwm.data.expectations.page import render_page
from iwm.errors import ConfigError, DataError
from iwm.files import write_json
from iwm.gameplay.index import INDEX, INDEX_SCHEMA, QUARANTINE_SCHEMA
from iwm.gameplay.schema import NO_ACTION, Recording
from iwm.settings import to_dict

CFG = ValidateConfig()
EPISODES, STEPS = 10, 20
Columns = dict[str, np.ndarray]


def columns(episodes: int = EPISODES, steps: int = STEPS) -> Columns:
    """A faultless index of one recording, as arrays one can spoil."""
    n = episodes * steps
    random = np.random.default_rng(0)
    episode, step = np.divmod(np.arange(n), steps)
    split = np.array(["train"] * 6 + ["val", "train", "train", "test"], dtype=object)[episode % 10]
    return {
        "key": np.array([f"toy/{n // steps:06d}/{n % steps:06d}" for n in range(n)], object),
        "recording": np.full(n, "toy", object),
        "episode": episode,
        "step": step,
        "time_s": np.arange(n) / 10,
        "frame": np.arange(n),
        "action": np.where(step == steps - 1, NO_ACTION, np.arange(n) % 2),
        "action_vector": np.full(n, None, object),
        "reward": np.zeros(n),
        "done": np.zeros(n, bool),
        "width": np.full(n, 64),
        "height": np.full(n, 48),
        "luma_mean": random.uniform(60, 200, n),
        "luma_std": random.uniform(10, 60, n),
        "sharpness": random.uniform(50, 900, n),
        "phash": random.integers(0, 2**63, n).astype(np.uint64),
        "sha1": np.array([random.bytes(20) for _ in range(n)], object),
        "status": np.full(n, "ok", object),
        "split": split,
    }  # fmt: skip


def write(folder: Path, values: Columns, **recorded: Any) -> Path:
    recording = Recording(
        name="toy", source="procedural", game="toy", fps=10.0, width=64, height=48,
        actions=("left", "right"), licence="CC0-1.0",
    )  # fmt: skip
    frames = folder / "frames"
    frames.mkdir(parents=True, exist_ok=True)
    arrays = [pa.array(values[field.name], field.type, from_pandas=False) for field in INDEX_SCHEMA]
    pq.write_table(pa.table(arrays, schema=INDEX_SCHEMA), frames / "toy.parquet")
    bad = [
        {"recording": "toy", "file": "frames.mkv", "frame": int(frame), "frames": 1, "reason": why}
        for frame, why in zip(values["frame"], values["status"], strict=True)
        if why != "ok"
    ]
    pq.write_table(pa.Table.from_pylist(bad, QUARANTINE_SCHEMA), folder / "quarantine.parquet")
    document = {"toy": to_dict(recording) | recorded}
    write_json(folder / "recordings.json", {"version": INDEX.current, "recordings": document})
    return folder


def named(report: ValidationReport, name: str) -> Finding:
    return next(finding for finding in report.findings if finding.name == name)


def test_a_faultless_index_passes_without_a_warning(tmp_path: Path) -> None:
    actions = {"toy/left": 95, "toy/right": 95}
    report = validate_index(write(tmp_path, columns()), CFG, actions)
    assert report.passed
    assert [finding.line() for finding in report.findings if not finding.success] == []
    assert len(report.findings) == 15
    assert report.notes == ()
    assert report.splits == {"train": 160, "val": 20, "test": 20}
    assert report.actions == {"toy/left": 100, "toy/right": 90}
    assert named(report, "frames").observed == 200


def put(name: str, where: Any, value: Any) -> Callable[[Columns], None]:
    def spoil(values: Columns) -> None:
        values[name][where] = value

    return spoil


def copy_rows(name: str, target: slice, source: slice) -> Callable[[Columns], None]:
    def spoil(values: Columns) -> None:
        values[name][target] = values[name][source]

    return spoil


# What is spoilt; which expectation must fail, with which figure.
FAULTS = {
    "unique_keys": (put("key", 3, "toy/000000/000004"), 2 / 200),
    "decode_failures": (put("status", slice(100, 106), "damaged data"), 6 / 200),
    "action_vocabulary": (put("action", 5, 7), 1 / 200),
    "increasing_time": (put("time_s", 7, 0.5), 1 / 10),
    "frame_rate": (put("time_s", slice(40, 60), np.arange(20) / 9), 1 / 10),
    "one_split": (put("split", 3, "test"), 1 / 10),
    "ended_episodes": (put("action", 39, 1), 1 / 10),
    "black_frames": (put("luma_mean", slice(0, 11), 1.0), 11 / 200),
    "frozen_frames": (put("phash", slice(0, 119), np.uint64(5)), (119 - 6) / 200),
    "duplicate_frames": (copy_rows("sha1", slice(20, 50), slice(60, 90)), 60 / 200),
    "leakage": (copy_rows("phash", slice(120, 130), slice(0, 10)), 10 / 40),
}
WARNINGS = {"frozen_frames", "duplicate_frames", "leakage"}


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_is_found_by_its_expectation_with_its_figure(tmp_path: Path, name: str) -> None:
    spoil, observed = FAULTS[name]
    values = columns()
    spoil(values)
    report = validate_index(write(tmp_path, values), CFG)
    finding = named(report, name)
    assert not finding.success
    assert finding.error == ""
    assert finding.observed == pytest.approx(observed)
    assert {other.name for other in report.failed} == ({name} - WARNINGS)
    assert name in {other.name for other in (*report.warned, *report.failed)}
    for part in (name, f"{observed:.4g}", f"{finding.bound:.4g}"):
        assert part in finding.line()


def test_short_episodes_warn(tmp_path: Path) -> None:
    values = {name: array[:181] for name, array in columns().items()}
    values["action"][180] = NO_ACTION
    report = validate_index(write(tmp_path, values), CFG)
    assert report.passed
    assert named(report, "episode_length").observed == pytest.approx(1 / 10)


@pytest.mark.parametrize(
    ("previous", "nats", "success"),
    [
        ({"toy/left": 100, "toy/right": 90}, 0.0, True),
        # 0.5263 ln(0.5263 / 0.01) + 0.4737 ln(0.4737 / 0.99)
        ({"toy/left": 1, "toy/right": 99}, 1.7366, False),
        ({"toy/left": 1}, None, False),  # an action that was never seen before
    ],
)
def test_action_distribution_against_the_previous_version(
    tmp_path: Path, previous: dict[str, int], nats: float | None, success: bool
) -> None:
    report = validate_index(write(tmp_path, columns()), CFG, previous)
    finding = named(report, "action_distribution")
    assert finding.error == ""
    assert finding.success is success
    if nats is None:
        assert finding.observed is not None
        assert finding.observed > CFG.max_action_kl
    else:
        assert finding.observed == pytest.approx(nats, abs=0.01)


def test_severity_is_configuration(tmp_path: Path) -> None:
    values = columns()
    FAULTS["leakage"][0](values)
    FAULTS["black_frames"][0](values)
    cfg = ValidateConfig(severity={"leakage": "error", "black_frames": "warning"})
    report = validate_index(write(tmp_path, values), cfg)
    assert [finding.name for finding in report.failed] == ["leakage"]
    assert [finding.name for finding in report.warned] == ["black_frames"]
    with pytest.raises(ConfigError, match="no such expectation: blak_frames"):
        validate_index(tmp_path, ValidateConfig(severity={"blak_frames": "error"}))


def test_another_schema_is_an_error(tmp_path: Path) -> None:
    index = write(tmp_path, columns())
    path = index / "frames" / "toy.parquet"
    pq.write_table(pq.ParquetFile(path).read().drop_columns("sharpness"), path)
    report = validate_index(index, CFG)
    assert {finding.name for finding in report.failed} == {"index_schema", "frames"}


def test_an_empty_index_fails_for_having_no_frames(tmp_path: Path) -> None:
    report = validate_index(write(tmp_path, columns(episodes=0)), CFG, {"toy/left": 5})
    assert [finding.line() for finding in report.failed] == [
        "frames: 0 against a bound of 1 (good frames, at least)"
    ]
    assert "Nothing." in render_page(report)


def test_an_index_whose_frames_are_all_set_aside(tmp_path: Path) -> None:
    values = columns()
    values["status"][:] = "damaged data"
    report = validate_index(write(tmp_path, values), CFG)
    assert {finding.name for finding in report.failed} == {"frames", "decode_failures"}
    assert report.quarantine == ({"reason": "damaged data", "frames": 200},)


@pytest.mark.parametrize("recorded", [{"variable_frame_rate": True}, {"source": "images"}])
def test_recordings_without_a_fixed_rate_are_exempt_from_it(
    tmp_path: Path, recorded: dict[str, Any]
) -> None:
    values = columns()
    values["time_s"] = values["time_s"] * 3.0
    report = validate_index(write(tmp_path, values, **recorded), CFG)
    assert report.passed
    assert named(report, "frame_rate").observed is None
    assert "10 episodes have no fixed frame rate to check" in report.notes


def test_images_need_no_time_and_continuous_actions_no_vocabulary(tmp_path: Path) -> None:
    values = columns()
    values["time_s"][:] = 0.0
    values["action"][:] = NO_ACTION
    report = validate_index(write(tmp_path, values, source="images", actions=[]), CFG, {"a": 1})
    assert report.passed
    assert "no discrete actions: their distribution is not compared" in report.notes


def test_an_index_that_is_not_whole_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="iwm ingest"):
        validate_index(tmp_path, CFG)


def test_the_page_stands_alone_and_escapes_what_the_data_says(tmp_path: Path) -> None:
    values = columns()
    values["status"][0] = "<script>alert(1)</script>"
    page = render_page(validate_index(write(tmp_path, values), CFG))
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "http" not in page
    for part in ("black_frames", "toy/left", "Episode lengths", "toy/000000/00000"):
        assert part in page


def test_a_hundred_thousand_rows(tmp_path: Path) -> None:
    report = validate_index(write(tmp_path, columns(episodes=500, steps=200)), CFG)
    assert report.passed
    assert sum(report.splits.values()) == 100_000

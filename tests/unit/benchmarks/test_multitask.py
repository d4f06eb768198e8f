from __future__ import annotations

import math
import statistics
from pathlib import Path

import pytest

from benchmarks import multitask
from benchmarks.multitask import ARMS, Row, measure


def test_every_arm_is_measured_against_the_tasks_alone(
    tiny_shards: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("torchjd")
    rows = measure(tiny_shards, None, seeds=1, steps=2, keep=tmp_path / "kept")
    assert len(list((tmp_path / "kept").iterdir())) == 3 + len(ARMS)
    monkeypatch.setattr(multitask, "train", None)  # what is kept is not trained again
    assert measure(tiny_shards, None, seeds=1, steps=2, keep=tmp_path / "kept") == rows
    assert [row.arm for row in rows] == list(ARMS)
    for row in rows:
        assert len(row.improvements) == 1
        assert len(row.improvements[0]) == 3
        assert all(math.isfinite(value) for value in row.improvements[0])
        assert row.seconds > 0
    assert capsys.readouterr().out.count("seed 0") == 2 * len(ARMS)


def test_a_row_sums_up_over_tasks_and_then_over_seeds() -> None:
    row = Row("sum", [[1.0, 0.5, 0.0], [0.5, 0.5, 0.5]], 0.1)
    assert row.over_seeds(statistics.mean) == (0.5, 0.0)
    assert row.over_seeds(min) == (0.25, 0.25)

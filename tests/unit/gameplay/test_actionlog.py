from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from iwm.errors import DataError
from iwm.gameplay.schema import NO_ACTION
from iwm.gameplay.sources.actionlog import align, read_log, row_in_force, vocabulary


def written(folder: Path, text: str | bytes, name: str = "log.csv") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_the_three_formats_say_the_same(tmp_path: Path) -> None:
    rows = [
        {"time": 0.0, "action": "go", "reward": 1.5, "done": False},
        {"time": 0.5, "action": "stop", "reward": 0.0, "done": True},
    ]
    text = "time,action,reward,done\n0.0,go,1.5,false\n0.5,stop,0,true\n"
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "log.parquet")
    paths = [
        written(tmp_path, text),
        written(tmp_path, "\ufeff" + text.replace(",", "\t"), "log.tsv"),
        written(tmp_path, lines, "log.jsonl"),
        tmp_path / "log.parquet",
    ]
    for log in map(read_log, paths):
        assert log.names == ("go", "stop")
        assert log.times_s.tolist() == [0.0, 0.5]
        assert log.rewards.tolist() == [1.5, 0.0]
        assert log.done.tolist() == [False, True]


def test_keys_held(tmp_path: Path) -> None:
    rows = "time,key,event\n0,w,down\n1,space,down\n1.2,w,down\n2,w,up\n3,space,UP\n"
    log = read_log(written(tmp_path, rows))
    assert log.names == ("w", "space+w", "space+w", "space", "none")
    assert vocabulary(log, None) == ("none", "space", "space+w", "w")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("log.csv", "time,action_x,action_y\n0,0.5,-1\n1,0.25,0\n"),
        ("log.jsonl", '{"time":0,"action":[0.5,-1]}\n\n{"time":1,"action":[0.25,0]}\n'),
    ],
)
def test_continuous_actions(tmp_path: Path, name: str, text: str) -> None:
    log = read_log(written(tmp_path, text, name))
    assert log.vectors is not None
    assert log.vectors.tolist() == [[0.5, -1.0], [0.25, 0.0]]
    assert vocabulary(log, None) == ()
    laid = align(log, (), np.array([-1.0, 0.0, 1.0, 2.0]), last_s=1.0)
    assert laid.in_force.tolist() == [False, True, True, False]
    assert laid.vectors is not None
    assert laid.vectors[1:3].tolist() == log.vectors.tolist()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "the file is empty"),
        ("time,action\n", "without rows"),
        ("when,action\n1,a\n", "no column time"),
        ("time,what\n1,a\n", "no column action"),
        ("time,action\n1,a\n0.5,b\n", "line 3: time 0.5 is before the row above, 1"),
        ("time,action\nnan,a\n", "line 2: time is 'nan', not a finite number"),
        ("time,action\ninf,a\n", "not a finite number"),
        ("time,action\nsoon,a\n", "line 2: time is 'soon', not a number"),
        ("time,action\n1,\n", "line 2: action is ''"),
        ("time,action\n1\n", "line 2: not as many values"),
        ("time,action\n1,a,b\n", "line 2: not as many values"),
        ("time,action,reward\n1,a,nan\n", "line 2: reward is 'nan'"),
        ("time,action,done\n1,a,maybe\n", "line 2: done is 'maybe'"),
        ("time,action_x\n1,nan\n", "line 2: action_x is 'nan'"),
        ("time,key,event\n1,w,held\n", "line 2: event is 'held'"),
        (b"time,action\n1,\xe9t\xe9\n", "not UTF-8 at byte 14"),
    ],
)
def test_bad_logs_are_one_line(tmp_path: Path, text: str | bytes, reason: str) -> None:
    with pytest.raises(DataError) as caught:
        read_log(written(tmp_path, text))
    assert str(caught.value).startswith(str(tmp_path / "log.csv"))
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("log.jsonl", "{oops\n", "line 1: not JSON"),
        ("log.jsonl", "[1]\n", "line 1: expected an object"),
        ("log.jsonl", '{"time":0,"action":[1]}\n{"time":1,"action":[1,2]}\n', "different"),
        ("log.jsonl", '{"time":NaN,"action":"a"}\n', "not a finite number"),
        ("log.parquet", "PAR1 not really", "not parquet"),
        ("log.txt", "x", "must be .csv"),
    ],
)
def test_bad_logs_of_other_formats(tmp_path: Path, name: str, text: str, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        read_log(written(tmp_path, text, name))


def test_unknown_actions_are_named(tmp_path: Path) -> None:
    log = read_log(written(tmp_path, "time,action\n0,a\n1,b\n2,c\n"))
    assert vocabulary(log, ("c", "b", "a")) == ("c", "b", "a")
    with pytest.raises(DataError, match=r"unknown action 'b' at 1 s and 1 more; known are a"):
        vocabulary(log, ("a",))


def test_the_example_of_the_documentation() -> None:
    frames = np.arange(6) / 30
    for row in (0.085, 0.100, 0.112):
        assert row_in_force(frames, np.array([row]), 1 / 30).tolist() == [-1, -1, -1, 0, 0, 0]
    assert row_in_force(frames, np.array([0.133]), 1 / 30).tolist() == [-1, -1, -1, -1, 0, 0]


@given(
    st.lists(st.sampled_from([1, 1, 1, 1, 2, 3, 5]), min_size=2, max_size=60),
    st.floats(-0.45, 0.45),
)
def test_a_row_within_half_a_frame_counts_for_its_frame(gaps: list[int], jitter: float) -> None:
    """Frames dropped at will, the logger late or early: the frame's own row is chosen."""
    shown = np.cumsum([0, *gaps])
    every = np.arange(shown[-1] + 1) / 30
    # Drop more than every other frame, and half a median interval is a whole frame.
    assume(np.median(np.diff(shown)) == 1)
    chosen = row_in_force(shown / 30, every + jitter / 30, 1 / 30)
    np.testing.assert_array_equal(chosen, shown)


def test_episodes_from_done_labels_or_pieces(tmp_path: Path) -> None:
    frames = np.arange(6, dtype=np.float64)
    done = read_log(written(tmp_path, "time,action,done,reward\n0,a,0,1\n2,b,1,2\n3,a,0,4\n"))
    laid = align(done, ("a", "b"), frames, last_s=1.0)
    assert laid.episode.tolist() == [0, 0, 0, 1, 1, 1]
    assert laid.action.tolist() == [0, 0, 1, 0, 0, NO_ACTION]
    assert laid.reward.tolist() == [1, 0, 2, 4, 0, 0]
    assert laid.done.tolist() == [False, False, True, False, False, False]
    labels = read_log(written(tmp_path, "time,action,episode\n0,a,x\n3,b,y\n"))
    laid = align(labels, ("a", "b"), frames, last_s=1.0)
    assert laid.episode.tolist() == [0, 0, 0, 1, 1, 1]
    assert laid.action.tolist() == [0, 0, NO_ACTION, 1, 1, NO_ACTION]
    plain = read_log(written(tmp_path, "time,action\n1,a\n"))
    laid = align(plain, ("a",), frames, last_s=1.0, episode_s=2.0)
    assert laid.episode.tolist() == [0, 0, 1, 1, 2, 2]
    assert laid.action.tolist() == [NO_ACTION, NO_ACTION, 0, NO_ACTION, 0, NO_ACTION]


def test_offset_moves_the_log(tmp_path: Path) -> None:
    log = read_log(written(tmp_path, "time,action\n100,a\n101,b\n"))
    laid = align(log, ("a", "b"), np.arange(4.0), offset_s=-99.0, last_s=1.0)
    assert laid.action.tolist() == [NO_ACTION, 0, 1, NO_ACTION]

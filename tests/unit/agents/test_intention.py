"""Intentions: their size, what they keep, what is given up, what is no intention."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers_of_others import counts

from iwm.agents.codec import FILE, TrajectoryCodec
from iwm.agents.intention import (
    MAX_BYTES,
    PLAN_FIRST,
    IntentionCompressor,
    NotJson,
    TooLong,
    Trajectory,
)
from iwm.errors import DataError, ModelError

RNG = np.random.default_rng(0)
WALKS = RNG.normal(size=(200, 20, 6)).cumsum(1).astype(np.float32)
FITTED = TrajectoryCodec.fit(WALKS)
GRID = TrajectoryCodec.cosine(16, [0, 0], [9, 9])
COMPRESSORS = (IntentionCompressor(FITTED), IntentionCompressor(GRID))

floats = st.floats(allow_nan=False, allow_infinity=False, width=32)
goals = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=60),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.lists(st.integers(-99, 99), min_size=1, max_size=4),
)


@st.composite
def cases(draw: st.DrawFn) -> tuple[IntentionCompressor, Any, Any, float, float | None]:
    compressor = draw(st.sampled_from(COMPRESSORS))
    size, steps = compressor.codec.state_dim, draw(st.integers(1, compressor.codec.horizon))
    seed, scale = draw(st.integers(0, 2**32 - 1)), draw(st.sampled_from((0.0, 1.0, 1e3, 1e30)))
    states = scale * np.random.default_rng(seed).normal(size=(steps, size))
    return compressor, states, draw(goals), draw(st.floats(0, 1)), draw(st.none() | floats)


def has_fewer_than_fifty_tokens(case: Any) -> None:
    compressor, states, goal, confidence, outcome = case
    try:
        message = compressor.compress(states, goal, confidence, outcome=outcome)
    except DataError:
        # Only a goal that fills an intention by itself is refused.
        alone = json.dumps({"g": goal}, ensure_ascii=False, separators=(",", ":"))
        assert len(alone.encode()) > MAX_BYTES
        return
    assert len(message.encode()) <= MAX_BYTES == 49  # at most one token a byte
    for name, count in counts().items():
        assert count(message) < 50, name
    said = compressor.decompress(message)
    kept = json.loads(message)
    assert said.goal == (tuple(goal) if isinstance(goal, list) else goal)
    assert ("c" in kept) == (said.confidence is not None)
    if said.confidence is not None:
        assert said.confidence == pytest.approx(confidence, abs=0.00501)
    if said.outcome is not None:
        assert said.outcome == pytest.approx(outcome, rel=0.051, abs=1e-40)
    # Given up in this order: outcome, confidence, plan.
    order = [key for key in ("p", "c", "o") if key in kept]
    assert order in (["p", "c", "o"], ["p", "c"], ["p"], [])
    if "p" in kept:
        assert len(kept["p"]) >= PLAN_FIRST[order[-1]]
        assert np.isfinite(said.trajectory).all()


EVERYTHING = {"deadline": None, "suppress_health_check": list(HealthCheck)}


@settings(max_examples=300, **EVERYTHING)
@given(cases())
def test_intentions_have_fewer_than_fifty_tokens(case: Any) -> None:
    has_fewer_than_fifty_tokens(case)


@pytest.mark.slow
@settings(max_examples=10_000, **EVERYTHING)
@given(cases())
def test_ten_thousand_intentions_have_fewer_than_fifty_tokens(case: Any) -> None:
    has_fewer_than_fifty_tokens(case)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 199), st.floats(0, 1))
def test_what_was_said_is_said_the_same_way_again(row: int, confidence: float) -> None:
    compressor = COMPRESSORS[0]
    message = compressor.compress(WALKS[row], "red", confidence, outcome=-1.25)
    said = compressor.decompress(message)
    assert said.trajectory is not None
    assert said.confidence is not None
    again = compressor.compress(said.trajectory, said.goal, said.confidence, outcome=said.outcome)
    assert again == message


def test_paths_on_a_grid_come_back_exactly() -> None:
    rng = np.random.default_rng(1)
    for _ in range(50):
        cells = np.clip(rng.integers(0, 10, 2) + rng.integers(-1, 2, (16, 2)).cumsum(0), 0, 9)
        message = COMPRESSORS[1].compress(cells, [int(cells[-1, 0]), int(cells[-1, 1])], 1.0)
        said = COMPRESSORS[1].decompress(message)
        assert said.trajectory is not None
        assert np.abs(np.rint(said.trajectory) - cells).mean() < 0.05
        assert said.goal == tuple(cells[-1].tolist())


def test_more_characters_say_more() -> None:
    held = np.random.default_rng(2).normal(size=(50, 20, 6)).cumsum(1)
    errors = []
    for length in (4, 10, 18, 28, 40):
        codes = [FITTED.encode(walk, length) for walk in held]
        errors.append(np.sqrt(np.square(FITTED.lift(FITTED.decode(codes)) - held).mean()))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.5 * errors[0]


def test_a_shorter_trajectory_waits_at_its_end() -> None:
    path = np.array([[0, 0], [1, 0], [2, 0], [2, 1]])
    said = COMPRESSORS[1].decompress(COMPRESSORS[1].compress(path, 1, 1.0)).trajectory
    assert said is not None
    assert (np.rint(said[:4]) == path).all()
    assert (np.rint(said[4:]) == path[-1]).all()


def test_a_trajectory_brings_its_outcome() -> None:
    plan = Trajectory(WALKS[0], np.zeros((20, 1), np.float32), 3.14, np.zeros(20, np.float32))
    said = COMPRESSORS[0].decompress(COMPRESSORS[0].compress(plan, 7, 0.5))
    assert (said.goal, said.confidence, said.outcome) == (7, 0.5, None)  # the plan goes first
    written = '{"g":7,"c":50,"o":3.1}'
    assert COMPRESSORS[0].decompress(written).outcome == 3.1


@pytest.mark.parametrize(
    ("states", "goal", "confidence", "line"),
    [
        (WALKS[0], 1, 1.5, "confidence: expected a number from 0 to 1"),
        (WALKS[0], 1, float("nan"), "confidence: "),
        (WALKS[0], "x" * 42, 0.5, "goal: expected at most 41 bytes, given 42"),
        (WALKS[0], "\ud800", 0.5, "goal: expected text of whole characters"),
        (WALKS[0], [], 0.5, "goal: expected text, a finite number or a list"),
        (WALKS[0], True, 0.5, "goal: expected text, a finite number"),
        (WALKS[0], float("inf"), 0.5, "goal: expected text, a finite number"),
        (WALKS[0][:, :3], 1, 0.5, "trajectory: expected finite"),
        (np.zeros((21, 6)), 1, 0.5, "trajectory: expected finite"),
        (np.full((20, 6), np.nan), 1, 0.5, "trajectory: expected finite"),
    ],
)
def test_what_cannot_be_said(states: Any, goal: Any, confidence: float, line: str) -> None:
    with pytest.raises(DataError, match=line.replace("(", r"\(")):
        COMPRESSORS[0].compress(states, goal, confidence)


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ("", NotJson),
        ("hello", NotJson),
        ('{"g":1', NotJson),
        ('{"g":NaN}', NotJson),
        ("[" * 49, NotJson),
        (" " * 50, TooLong),
        ('{"g":"' + "é" * 21 + '"}', TooLong),
        ("\ud800" * 17, TooLong),
        (b'{"g":1}', NotJson),
        (None, NotJson),
        ("[1]", DataError),
        ("{}", DataError),
        ('{"g":null}', DataError),
        ('{"g":true}', DataError),
        ('{"g":1e999}', DataError),
        ('{"g":"\\ud800"}', DataError),
        ('{"g":1,"x":2}', DataError),
        ('{"g":1,"c":101}', DataError),
        ('{"g":1,"c":-1}', DataError),
        ('{"g":1,"c":true}', DataError),
        ('{"g":1,"c":0.5}', DataError),
        ('{"g":1,"o":"x"}', DataError),
        ('{"g":1,"p":7}', DataError),
        ('{"g":1,"p":""}', DataError),
        ('{"g":1,"p":"é"}', DataError),
        ('{"g":1,"p":" "}', DataError),
    ],
)
def test_what_is_no_intention(message: Any, kind: type[Exception]) -> None:
    with pytest.raises(kind):
        COMPRESSORS[0].decompress(message)


@settings(max_examples=500, deadline=None)
@given(st.text(max_size=60) | st.text('{}[]":,gcop0123456789.eE+-~!#', max_size=49))
def test_any_text_is_read_or_refused(message: str) -> None:
    try:
        said = COMPRESSORS[0].decompress(message)
    except DataError:
        return
    assert said.features is None or np.isfinite(said.features).all()


def test_digits_beyond_every_level_are_no_plan() -> None:
    assert np.isfinite(FITTED.decode(["!" * 18])).all()
    with pytest.raises(DataError, match="no code of this length"):
        FITTED.decode(["~" * 18])


def test_a_codec_on_disk(tmp_path: Path) -> None:
    FITTED.save(tmp_path)
    again = TrajectoryCodec.load(tmp_path)
    assert again.encode(WALKS[3], 28) == FITTED.encode(WALKS[3], 28)
    with pytest.raises(ModelError, match="not found"):
        TrajectoryCodec.load(tmp_path / "elsewhere")
    (tmp_path / FILE).write_bytes((tmp_path / FILE).read_bytes()[:-40])
    with pytest.raises(ModelError, match="cannot be read"):
        TrajectoryCodec.load(tmp_path)


def test_a_codec_of_wrong_shapes_is_refused() -> None:
    arrays = FITTED._arrays()
    with pytest.raises(ModelError, match="courses: expected"):
        TrajectoryCodec(**{**arrays, "courses": arrays["courses"][:, 1:]})
    with pytest.raises(ModelError, match="finite"):
        TrajectoryCodec(**{**arrays, "mean": arrays["mean"] * np.nan})
    with pytest.raises(DataError, match="N > 1"):
        TrajectoryCodec.fit(WALKS[:1])
    with pytest.raises(DataError, match="low below high"):
        TrajectoryCodec.cosine(4, [0, 1], [1, 1])


def test_a_number_that_never_changes_is_coded_too() -> None:
    walks = WALKS.copy()
    walks[..., 2] = 5
    codec = TrajectoryCodec.fit(walks)
    states = codec.lift(codec.decode([codec.encode(walks[0], 28)]))[0]
    assert states[:, 2] == pytest.approx(5, abs=0.1)

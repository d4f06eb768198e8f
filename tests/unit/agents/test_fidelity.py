"""Fidelity of intentions: what is the same decision, and what a message is worth."""

from __future__ import annotations

import numpy as np
import pytest
from tinyembodied import HORIZON, ROLLOUTS, STATE, starts, tiny_compressor, tiny_generator

from iwm.agents.codec import TrajectoryCodec
from iwm.agents.fidelity import choices, intention_fidelity
from iwm.agents.intention import IntentionCompressor
from iwm.errors import DataError

GENERATOR = tiny_generator()
COMPRESSOR = tiny_compressor(GENERATOR)


def walks(count: int, seed: int) -> np.ndarray:
    """Walkers in a plane [count, 4, 20, 2] that turn now and then."""
    rng = np.random.default_rng(seed)
    angle = rng.normal(0, 0.3, (count, 4, 20)).cumsum(-1) + rng.uniform(0, 6.3, (count, 1, 1))
    steps = np.stack([np.cos(angle), np.sin(angle)], -1).cumsum(2)
    return (steps + rng.normal(0, 3, (count, 1, 1, 2))).astype(np.float32)


def test_figures_of_a_model() -> None:
    states = starts(20, seed=5)
    found = intention_fidelity(
        GENERATOR, COMPRESSOR, states, np.repeat(np.arange(5), 4), goals=states[::-1].copy()
    )
    assert set(found) == {"fidelity", "without", "bytes", "error"}
    for figure in found.values():
        assert figure["low"] <= figure["mean"] <= figure["high"]
        assert figure["n"] == 20
    assert found["fidelity"]["mean"] > found["without"]["mean"]
    assert found["bytes"]["high"] <= 49
    with pytest.raises(DataError, match="at least two"):
        intention_fidelity(GENERATOR, COMPRESSOR, states[:1], np.zeros(1))


def test_intentions_keep_decisions_that_silence_changes() -> None:
    codec = TrajectoryCodec.fit(walks(100, 0).reshape(-1, 20, 2))
    compressor = IntentionCompressor(codec)
    own, plans = walks(60, 1), walks(60, 2)[:, 0]
    scores = np.random.default_rng(3).normal(size=(60, 4))
    messages = [compressor.compress(plan, 1, 0.5) for plan in plans]
    found = choices(own, scores, plans, messages, compressor)
    same = (found.intention == found.full).mean()
    without = (found.nothing == found.full).mean()
    assert same >= 0.95
    assert without < 0.8
    # A message of somebody else's plan is worth little more than silence.
    wrong = choices(own, scores, plans, messages[1:] + messages[:1], compressor)
    assert (wrong.intention == wrong.full).mean() < same - 0.1
    assert found.error.mean() < 0.2 < wrong.error.mean()


def test_a_message_without_a_plan_is_an_error() -> None:
    own = np.zeros((1, ROLLOUTS, HORIZON, STATE), np.float32)
    with pytest.raises(DataError, match="no space for a plan"):
        choices(own, np.zeros((1, ROLLOUTS)), own[:, 0], ['{"g":1}'], COMPRESSOR)

"""ViZDoom: real scenarios, actions that do what they say, nothing left behind."""

from __future__ import annotations

import dataclasses
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from iwm.errors import ConfigError
from iwm.gameplay.config import RecordPlan
from iwm.gameplay.sources.vizdoom import VizdoomSource, scenarios

PLAN = RecordPlan(name="d", source="vizdoom", game="my_way_home", frames=9)


def test_five_actions_with_five_outcomes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with closing(VizdoomSource(PLAN)) as source:
        assert source.actions == (
            "noop",
            "move_forward",
            "move_backward",
            "turn_left",
            "turn_right",
        )
        assert source.fps == 35 / 8
        frames = []
        for action in range(5):
            first = source.reset(11)
            assert (first.shape, first.dtype) == ((120, 160, 3), np.uint8)
            source.step(action)
            frames.append(source.step(action).frame)
        for one in range(5):
            for other in range(one):
                assert np.abs(frames[one].astype(int) - frames[other]).mean() > 2  # type: ignore
    assert list(tmp_path.iterdir()) == []


def test_the_end_of_a_game_has_no_frame() -> None:
    plan = dataclasses.replace(PLAN, game="health_gathering")
    with closing(VizdoomSource(plan)) as source:
        source.reset(1)
        for _ in range(500):
            outcome = source.step(0)
            if outcome.done:
                break
        assert outcome.done
        assert outcome.frame is None
        assert source.reset(1).any()


def test_bundled_scenarios_and_refusals() -> None:
    assert {"my_way_home", "health_gathering", "defend_the_center"} <= set(scenarios())
    assert not {"cig", "freedoom1"} & set(scenarios())
    with pytest.raises(ConfigError, match="no scenario 'quake'"):
        VizdoomSource(dataclasses.replace(PLAN, game="quake"))
    with pytest.raises(ConfigError, match="cannot draw 64x64; it can draw 160x120"):
        VizdoomSource(dataclasses.replace(PLAN, width=64, height=64))

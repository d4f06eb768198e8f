"""Foretelling trajectories: baselines against worlds that they know, figures, pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from iwm.data.trajectories import Episode, TrajectoryStore, write_trajectories
from iwm.evaluation.config import TrajectoryEvaluateConfig
from iwm.evaluation.trajectories import ARMS, calibration, correlation, figures, foretell
from iwm.evaluation.trajectory_pictures import draw
from iwm.gameplay.config import SplitConfig

CONFIG = TrajectoryEvaluateConfig(horizon=8, stride=3, report=(1, 4, 8))
SPLIT = SplitConfig(val=0.1, test=0.3)
DT = 0.5


class Oracle:
    """Knows the world of :func:`gliding`, up to a bias."""

    def __init__(self, bias: float = 0.0) -> None:
        self.state_std = torch.ones(4)
        self.bias = bias

    def predict(self, state: Tensor, actions: Tensor) -> Tensor:
        along = []
        for action in actions.unbind(1):
            place = state[:, :2] + DT * state[:, 2:]
            state = torch.cat([place, state[:, 2:] + action], 1)
            along.append(state + self.bias)
        return torch.stack(along, 1)

    def expected_error(self, state: Tensor, actions: Tensor) -> Tensor:
        return torch.full(actions.shape[:2], abs(self.bias))


def gliding(folder: Path, pushed: bool, named: bool = True) -> TrajectoryStore:
    """A body that glides, pushed by its actions or not."""
    rng = np.random.default_rng(0)
    episodes = []
    for number in range(30):
        state, states = rng.normal(size=4), []
        actions = rng.normal(size=(20, 2)) * (0.5 if pushed else 0.0)
        for action in [*actions, np.zeros(2)]:
            states.append(state)
            state = np.concatenate([state[:2] + DT * state[2:], state[2:] + action])
        rows = np.array(states, np.float32)
        episodes.append(
            Episode(f"g/{number}", rows, actions.astype(np.float32), np.zeros(20, "f4"))
        )
    facts: dict[str, Any] = {"step_s": DT}
    if named:
        facts |= {"state_names": ("a.x", "a.y", "a.vx", "a.vy"), "velocities": (2, 3, -1, -1)}
    write_trajectories(folder, episodes, SPLIT, "gliding", **facts)
    return TrajectoryStore(folder)


def test_an_oracle_is_right_and_baselines_are_where_they_must_be(tmp_path: Path) -> None:
    store = gliding(tmp_path / "set", pushed=True)
    found = foretell(Oracle(), store, "test", CONFIG)
    assert set(found.rmse) == set(ARMS)
    assert found.rmse["model"].max() < 1e-4
    # The world is linear, so the linear fit knows it too; the others do not.
    assert found.rmse["linear"].max() < 1e-2
    for arm in ("persistence", "constant_velocity", "wrong_action"):
        assert found.rmse[arm].mean() > 0.3
    result = figures(found, CONFIG, 100, 0)
    assert result["accuracy"]["model"]["low"] == 1.0
    assert list(result["accuracy_at"]) == ["k1", "k4", "k8"]
    assert result["margin"]["persistence"]["low"] > 0
    assert result["explained"]["model"]["mean"] == pytest.approx(1.0)
    assert result["accuracy"]["persistence"]["mean"] < 0.5


@pytest.mark.parametrize("named", [True, False])
def test_constant_velocity_knows_a_body_that_glides(tmp_path: Path, named: bool) -> None:
    found = foretell(Oracle(), gliding(tmp_path / "set", pushed=False, named=named), "test", CONFIG)
    assert found.rmse["constant_velocity"].max() < 1e-4
    assert found.rmse["persistence"].mean() > 0.3


def test_the_bound_decides(tmp_path: Path) -> None:
    store = gliding(tmp_path / "set", pushed=True)
    for bias, share in ((0.2, 1.0), (0.3, 0.0)):
        result = figures(foretell(Oracle(bias), store, "test", CONFIG), CONFIG, 100, 0)
        assert result["accuracy"]["model"]["mean"] == share
        assert result["uncertainty"]["expected"]["mean"] == pytest.approx(bias)
        assert result["uncertainty"]["measured"]["mean"] == pytest.approx(bias, abs=1e-4)


def test_no_more_starts_than_asked_for(tmp_path: Path) -> None:
    store = gliding(tmp_path / "set", pushed=True)
    config = TrajectoryEvaluateConfig(horizon=8, stride=1, starts=10, report=(1,))
    found = foretell(Oracle(), store, "test", config)
    assert len(found.episode) == len(found.truth) == 10
    assert len(set(found.episode.tolist())) > 3


def test_correlation_is_that_of_ranks() -> None:
    rng = np.random.default_rng(0)
    x, episode = rng.normal(size=(40, 5)), np.repeat(np.arange(10), 4)
    same = correlation(x.ravel(), np.exp(x).ravel(), episode, 200, 0)
    assert same["mean"] == pytest.approx(1.0)
    assert same["low"] == pytest.approx(1.0)
    noise = correlation(x.ravel(), rng.normal(size=200), episode, 200, 0)
    assert abs(noise["mean"]) < 0.25
    assert noise["low"] < noise["mean"] < noise["high"]


def test_calibration_sorts_by_what_was_expected(tmp_path: Path) -> None:
    found = foretell(Oracle(0.1), gliding(tmp_path / "set", pushed=True), "test", CONFIG)
    curve = calibration(found, 4)
    assert curve["expected"] == pytest.approx([0.1] * 4)
    assert curve["measured"] == pytest.approx([0.1] * 4, abs=1e-4)


@pytest.mark.parametrize("named", [True, False])
def test_pictures(tmp_path: Path, named: bool) -> None:
    store = gliding(tmp_path / "set", pushed=True, named=named)
    found = foretell(Oracle(0.1), store, "test", CONFIG)
    (tmp_path / "out").mkdir()
    draw(found, store, torch.ones(4), CONFIG, tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "paths.png",
        "horizon.png",
        "calibration.png",
    }

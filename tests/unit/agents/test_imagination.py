"""Imagined futures: they differ, they follow their plans, they are the same in any batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tinyembodied import ACTION, HORIZON, ROLLOUTS, STATE, starts, tiny_generator, tiny_world_model

from iwm.agents.imagination import Goal, ImaginedTrajectoryGenerator
from iwm.errors import ModelError


def test_shapes_and_the_best() -> None:
    found = tiny_generator().generate(starts(4), seed=3)
    assert found.states.shape == (4, ROLLOUTS, HORIZON, STATE)
    assert found.actions.shape == (4, ROLLOUTS, HORIZON, ACTION)
    assert found.uncertainty.shape == (4, ROLLOUTS, HORIZON)
    assert (found.best == found.returns.argmax(1)).all()
    one = found.trajectory(2, 1)
    assert (one.states == found.states[2, 1]).all()
    assert one.value == found.returns[2, 1]
    assert np.ptp(found.states[:, :, -1], axis=1).min() > 0  # futures differ


def test_the_same_seed_and_any_batch_imagine_the_same() -> None:
    generator = tiny_generator()
    whole = generator.generate(starts(5), seed=3)
    again = generator.generate(starts(5)[2:3], seed=3)
    assert whole.states[2:3] == pytest.approx(again.states, rel=1e-3, abs=1e-3)
    assert np.abs(generator.generate(starts(5), seed=4).states - whole.states).max() > 1e-3


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_threads_share_a_batch(workers: int) -> None:
    model = tiny_world_model()
    alone = ImaginedTrajectoryGenerator(model, rollouts=3, horizon=5, workers=1)
    shared = ImaginedTrajectoryGenerator(model, rollouts=3, horizon=5, workers=workers)
    one, other = (generator.generate(starts(4)) for generator in (alone, shared))
    for name in ("states", "actions", "returns", "uncertainty"):
        assert getattr(one, name) == pytest.approx(getattr(other, name), rel=1e-3, abs=1e-3)
    shared.close()


def test_a_policy_is_followed_in_imagined_states() -> None:
    asked = []

    def policy(states: torch.Tensor, step: int, _: torch.Generator) -> torch.Tensor:
        asked.append(step)
        return states[..., :ACTION].clamp(-1, 1)

    generator = ImaginedTrajectoryGenerator(
        tiny_world_model(), rollouts=3, horizon=4, policy=policy, workers=1
    )
    found = generator.generate(starts(2))
    assert asked == [0, 1, 2, 3]
    follow = np.clip(found.states[:, :, :-1, :ACTION], -1, 1)
    assert found.actions[:, :, 1:] == pytest.approx(follow, abs=1e-6)


def test_plans_run_as_the_policy_that_says_the_same() -> None:
    """The compiled loop says what the model's own step says."""
    model = tiny_world_model()
    plan = torch.rand(3, 6, ACTION)
    start = torch.from_numpy(starts(2))
    compiled = model.imagine(start, plan, 3, 6, seed=5)
    stepped = model.imagine(start, lambda _, k, __: plan[:, k].expand(2, -1, -1), 3, 6, seed=5)
    assert torch.allclose(compiled.states, stepped.states, rtol=1e-3, atol=1e-3)
    assert torch.allclose(compiled.returns, stepped.returns, rtol=1e-3, atol=1e-3)


def test_the_rest_of_what_was_chosen_is_imagined_again() -> None:
    before = np.random.default_rng(1).uniform(-1, 1, (2, HORIZON, ACTION)).astype(np.float32)
    found = tiny_generator().generate(starts(2), previous=before)
    assert (found.actions[:, 0, :-1] == before[:, 1:]).all()
    assert (found.actions[:, 0, -1] == before[:, -1]).all()


def test_a_target_judges_by_nearness() -> None:
    here = starts(2)
    target = np.full(STATE, np.nan, np.float32)
    target[0] = 2.0
    found = tiny_generator().generate(here, [Goal("right", target)] * 2)
    off = np.abs(found.states[..., 0] - 2.0).mean(-1)
    assert (found.best == off.argmin(1)).mean() >= 0.5  # discounted, so not the mean itself
    assert (found.returns < 0).all()
    order = np.corrcoef(found.returns.ravel(), -off.ravel())[0, 1]
    assert order > 0.95


@pytest.mark.parametrize(
    ("states", "goals", "line"),
    [
        (np.zeros((2, STATE + 1)), [], "state: shape"),
        (np.full((1, STATE), np.nan), [], "not finite"),
        (starts(2), [Goal("a")], "goals: expected one for each of 2"),
        (starts(2), [Goal("a"), Goal("b", starts(1)[0])], "in all of them, or in none"),
        (starts(1), [Goal("b", np.zeros(3, np.float32))], "target: expected"),
        (starts(1), [Goal("b", np.full(STATE, np.inf, np.float32))], "without infinities"),
    ],
)
def test_what_does_not_fit(states: np.ndarray, goals: list[Goal], line: str) -> None:
    with pytest.raises(ModelError, match=line):
        tiny_generator().generate(states, goals)


def test_previous_plans_of_another_shape() -> None:
    with pytest.raises(ModelError, match="previous: shape"):
        tiny_generator().generate(starts(1), previous=np.zeros((1, 3, ACTION)))
    with pytest.raises(ModelError, match="at least 1"):
        ImaginedTrajectoryGenerator(tiny_world_model(), rollouts=0)

"""The embodied world model: what rollouts promise, bad input, files, training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from iwm.data.trajectories import (
    Episode,
    StateBatch,
    TrajectoryLoader,
    TrajectoryStore,
    write_trajectories,
)
from iwm.errors import ConfigError, ModelError
from iwm.gameplay.config import SplitConfig
from iwm.models.embodied import WorldModel
from iwm.models.embodied.imagine import random_plans
from iwm.models.embodied.learning import pieces, rollout_length
from iwm.models.registry import create_model, load_model
from iwm.settings import parse
from iwm.training.config import TrainConfig
from iwm.training.distributed import Ranks
from iwm.training.tracking import read_history
from iwm.training.trainer import Trainer

GOLDEN = Path(__file__).parents[2] / "golden" / "embodied.json"
SIZES: dict[str, Any] = {"state_dim": 6, "action_dim": 2, "latent_dim": 16, "hidden_dim": 16}


def small(seed: int = 0, **over: Any) -> WorldModel:
    torch.manual_seed(seed)
    model = WorldModel(**{**SIZES, "step_dim": 24, "horizon": 7, **over})
    model.normalise_by(torch.linspace(-1, 1, 6), torch.linspace(0.5, 2, 6), 0.5, 2.0)
    with torch.no_grad():  # untrained, a step begins at "no change"
        model.dynamics.move.weight.normal_(0, 0.2)
    return model.eval()


def states(batch: int, seed: int = 1) -> Tensor:
    return torch.randn(batch, 6, generator=torch.Generator().manual_seed(seed))


def test_the_default_sizes_are_the_specification() -> None:
    model = WorldModel(state_dim=256, latent_dim=128, hidden_dim=512, horizon=50)
    assert WorldModel().config == model.config
    made = model.imagine(torch.zeros(2, 256), n=3)
    assert made.states.shape == (2, 3, 50, 256)
    assert made.actions.shape == (2, 3, 50, model.action_dim)
    assert made.rewards.shape == made.uncertainty.shape == (2, 3, 50)
    assert made.returns.shape == (2, 3)
    assert (made.uncertainty > 0).all()


def test_ten_rollouts_differ_even_under_one_plan() -> None:
    made = small().imagine(states(3), torch.zeros(7, 2), n=10)
    for one in range(10):
        for other in range(one):
            assert not torch.equal(made.states[:, one], made.states[:, other])


def test_rollouts_follow_the_policy_in_their_own_states() -> None:
    model, seen = small(), []

    def policy(here: Tensor, step: int, generator: torch.Generator) -> Tensor:
        seen.append(here.clone())
        return torch.tanh(here[..., :2]) * (step + 1)

    made = model.imagine(states(3), policy, n=4)
    assert torch.equal(seen[0], states(3)[:, None].expand(-1, 4, -1))
    for step in range(7):
        assert torch.equal(made.actions[:, :, step], torch.tanh(seen[step][..., :2]) * (step + 1))
        if step:
            torch.testing.assert_close(made.states[:, :, step - 1], seen[step])
    other = model.imagine(states(3), lambda here, *_: -torch.tanh(here[..., :2]), n=4)
    assert not torch.allclose(made.states, other.states)


def test_a_plan_and_a_policy_that_says_the_same_give_the_same_rollouts() -> None:
    model, plan = small(), random_plans(5, 7, 2, generator=torch.Generator().manual_seed(3))
    open_loop = model.imagine(states(3), plan, n=5, seed=4)
    closed = model.imagine(states(3), lambda _, k, __: plan[:, k].expand(3, -1, -1), n=5, seed=4)
    torch.testing.assert_close(open_loop.states, closed.states)
    torch.testing.assert_close(open_loop.returns, closed.returns)
    assert torch.equal(open_loop.actions, closed.actions)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 5), st.integers(1, 4), st.integers(0, 2**31))
def test_a_seed_reproduces_and_the_rest_of_the_batch_changes_nothing(
    batch: int, n: int, seed: int
) -> None:
    model, plan = small(), random_plans(n, 7, 2, generator=torch.Generator().manual_seed(seed))
    together = model.imagine(states(batch), plan, n=n, seed=seed)
    again = model.imagine(states(batch), plan, n=n, seed=seed)
    assert torch.equal(together.states, again.states)
    assert torch.equal(together.best, again.best)
    alone = model.imagine(states(batch)[-1:], plan, n=n, seed=seed)
    torch.testing.assert_close(alone.states[0], together.states[-1], atol=1e-5, rtol=1e-4)
    other = model.imagine(states(batch), plan, n=n, seed=seed + 1)
    assert not torch.equal(together.states, other.states)


def test_a_shorter_rollout_is_the_beginning_of_a_longer_one() -> None:
    model, plan = small(), random_plans(3, 7, 2, generator=torch.Generator().manual_seed(0))
    whole = model.predict(states(3), plan)
    torch.testing.assert_close(model.predict(states(3), plan[:, :4]), whole[:, :4])


def test_the_best_rollout_has_the_highest_return_and_is_the_one_chosen() -> None:
    model = small()
    made = model.imagine(states(4), n=6, reward=lambda here, _: -here.square().sum(-1))
    weights = 0.99 ** torch.arange(7)
    torch.testing.assert_close(made.returns, (-made.states.square().sum(-1) * weights).sum(-1))
    assert torch.equal(made.best, made.returns.argmax(1))
    chosen, actions = made.chosen()
    for row, best in enumerate(made.best.tolist()):
        torch.testing.assert_close(chosen[row], made.states[row, best])
        assert torch.equal(actions[row], made.actions[row, best])


def test_random_plans_hold_their_actions() -> None:
    plans = random_plans(4, 12, 3, discrete=True, hold=5)
    assert plans.shape == (4, 12, 3)
    assert torch.equal(plans.sum(-1), torch.ones(4, 12))
    assert torch.equal(plans[:, 0], plans[:, 4])
    assert random_plans(4, 12, 3).abs().max() <= 1


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (torch.zeros(6), r"state: shape \[6\], expected \[B, S\] = \[B, 6\]"),
        (torch.zeros(2, 5), r"state: shape \[2, 5\], expected"),
        (torch.zeros(0, 6), r"state: shape \[0, 6\], expected"),
        (torch.tensor([[0.0] * 6, [0.0] * 5 + [float("nan")]]), "state: row 1 holds numbers"),
        (torch.full((1, 6), float("inf")), "state: row 0 holds numbers"),
    ],
)
def test_a_bad_state_is_refused_by_name(state: Tensor, message: str) -> None:
    model = small()
    for ask in (model.imagine, lambda x: model.predict(x, torch.zeros(len(x), 3, 2))):
        with pytest.raises(ModelError, match=message):
            ask(state)


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        (torch.zeros(2, 2), r"actions: shape \[2, 2\], expected \[B, K, A\] = \[2, K, 2\]"),
        (torch.zeros(3, 4, 2), r"actions: shape \[3, 4, 2\]"),
        (torch.zeros(2, 0, 2), r"actions: shape \[2, 0, 2\]"),
        (torch.zeros(2, 4, 3), r"actions: shape \[2, 4, 3\]"),
        (torch.full((2, 4, 2), float("nan")), "actions: hold numbers that are not finite"),
    ],
)
def test_bad_actions_are_refused_by_name(actions: Tensor, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        small().predict(states(2), actions)


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (torch.zeros(6, 2), r"a plan of shape \[6, 2\]; expected \[B, n, H, A\] = \[2, 3, 7, 2\]"),
        (torch.full((7, 2), float("inf")), "not finite"),
        (lambda here, *_: here, r"policy: gave actions \[2, 3, 6\] at step 0"),
    ],
)
def test_a_bad_policy_is_refused(policy: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        small().imagine(states(2), policy, n=3)


def test_other_bad_arguments() -> None:
    with pytest.raises(ModelError, match="n 0 and horizon 7"):
        small().imagine(states(1), n=0)
    with pytest.raises(ModelError, match=r"reward: gave \[2, 3\], expected"):
        small().imagine(states(2), n=3, reward=lambda here, _: here[..., 0, 0])
    with pytest.raises(ModelError, match=r"std of the states: shape \[5\]"):
        small().normalise_by(torch.zeros(6), torch.ones(5), 0.0, 1.0)
    with pytest.raises(ConfigError, match=r"model.state_dim"):
        WorldModel(state_dim=0)
    with pytest.raises(ConfigError, match="state_names has 1 names for 6 numbers"):
        WorldModel(**SIZES, state_names=["x"])


def test_a_number_that_never_changes_keeps_its_scale() -> None:
    model = small()
    model.normalise_by(torch.zeros(6), torch.zeros(6), 0.0, 0.0)
    assert torch.equal(model.state_std, torch.ones(6))
    assert model.reward_std == 1


def test_a_saved_model_predicts_what_it_did(tmp_path: Path) -> None:
    model = small(vocabulary=["left", "right"], state_names=list("abcdef"))
    model.save_pretrained(tmp_path)
    loaded = load_model(tmp_path)
    assert loaded.config == model.config
    plan = random_plans(3, 7, 2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(loaded.predict(states(3), plan), model.predict(states(3), plan))
    assert load_model(tmp_path, trainable=True).posterior is not None
    config = json.loads((tmp_path / "config.json").read_text())
    config["settings"]["latent_dim"] = 8
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="has shape"):
        load_model(tmp_path)


@given(st.integers(2, 12), st.integers(1, 11))
def test_pieces_cover_the_window_and_share_their_ends(window: int, steps: int) -> None:
    if steps >= window:
        return
    values = torch.arange(2 * window * 3).view(2, window, 3)
    count = (window - 1) // steps
    cut = pieces(values, steps + 1, count)
    assert cut.shape == (2, count, steps + 1, 3)
    for place in range(count):
        assert torch.equal(cut[:, place], values[:, place * steps : (place + 1) * steps + 1])


def test_rollouts_grow_during_training() -> None:
    config = small(objective={"rollout_steps": [2, 20]}).config
    lengths = [rollout_length(config, progress / 10, 51) for progress in range(11)]
    assert lengths[0] == 2
    assert lengths[-1] == 20
    assert lengths == sorted(lengths)
    assert rollout_length(config, 1.0, 5) == 4


def test_the_loss_asks_for_a_window() -> None:
    model = small().train()
    batch = StateBatch(torch.zeros(2, 1, 6), torch.zeros(2, 1, 2), torch.zeros(2, 1), ["a", "b"])
    with pytest.raises(ModelError, match="at least two states"):
        model(batch)


def write_set(folder: Path, episodes: int = 30) -> TrajectoryStore:
    """A damped point mass under random forces, with a little noise."""
    rng = np.random.default_rng(0)
    made = []
    for number in range(episodes):
        state, rows, actions = rng.normal(size=6), [], rng.uniform(-1, 1, (20, 2))
        for action in [*actions, None]:
            rows.append(state)
            if action is not None:
                state = 0.9 * state
                state[:2] += 0.5 * state[2:4] + 0.01 * rng.normal(size=2)
                state[2:4] += action
        made.append(
            Episode(
                f"mass/{number}",
                np.array(rows, np.float32),
                actions.astype(np.float32),
                -np.linalg.norm(np.array(rows)[1:, :2], axis=1).astype(np.float32),
            )
        )
    write_trajectories(folder, made, SplitConfig(val=0.1, test=0.1), "mass")
    return TrajectoryStore(folder)


def trainer(store: TrajectoryStore, out: Path, **over: Any) -> Trainer:
    values: dict[str, Any] = {
        "model": {
            "name": "embodied",
            **SIZES,
            "step_dim": 24,
            "objective": {"rollout_steps": [1, 5]},
        },
        "epochs": 10,
        "batch_size": 16,
        "window": 11,
        "precision": "fp32",
        "device": "cpu",
        "checkpoint_every": 5,
        "log_every": 1,
        "optim": {"lr": 0.005},
        **over,
    }
    config = parse(TrainConfig, values, "train.tiny")
    torch.manual_seed(0)
    model = create_model(**config.model)
    model.normalise_by(*store.statistics())
    batches = TrajectoryLoader(store, "train", config.batch_size, window=config.window, stride=5)
    place = Ranks(0, 1, torch.device("cpu"))
    return Trainer(model, config, batches, out, place, data_revision=store.info.revision)


def test_the_golden_curve(tmp_path: Path) -> None:
    """Losses of a run that is the same on every machine but for the last digits."""
    trainer(write_set(tmp_path / "set"), tmp_path / "run").fit()
    curve = [row["loss"] for row in read_history(tmp_path / "run" / "history.jsonl")]
    golden = json.loads(GOLDEN.read_text())["loss"]
    assert curve == pytest.approx(golden, rel=2e-3)
    assert np.mean(curve[-5:]) < 0.5 * curve[0]


def test_a_run_that_stopped_goes_on_to_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = write_set(tmp_path / "set")
    trainer(store, tmp_path / "whole").fit()
    broken = trainer(store, tmp_path / "broken")
    step, calls = broken._step, 0

    def stop(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > 12:
            raise KeyboardInterrupt
        return step(*arguments)

    monkeypatch.setattr(broken, "_step", stop)
    with pytest.raises(KeyboardInterrupt):
        broken.fit()
    trainer(store, tmp_path / "broken").fit()
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "broken"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from colourworld import NAMES, SHIFT, ColourModel, make_branches, make_play
from PIL import Image

from iwm.data.reader import ShardStore
from iwm.errors import DataError, ModelError
from iwm.evaluation.action import evaluate
from iwm.evaluation.action_pictures import draw
from iwm.evaluation.anomalies import of_branches, of_play
from iwm.evaluation.config import ActionEvaluateConfig, EvaluateConfig
from iwm.evaluation.crossfit import Scored, calibrate, in_turns
from iwm.evaluation.play import encode_branches, read_play, states_of
from iwm.evaluation.predictions import predict_claimed, predict_every
from iwm.evaluation.rollout import rollout_figures, rollouts
from iwm.evaluation.statistics import chance_mrr
from iwm.evaluation.temporal import temporal_figures, temporal_retrieval

CONFIG = EvaluateConfig(bootstrap=100, bank=256, action=ActionEvaluateConfig(horizon=8))


def test_windows_stay_inside_a_run_and_know_their_actions() -> None:
    play = make_play(ColourModel(), 0, episodes=3, steps=10)
    at = play.windows(2, 3)
    assert len(at) == 3 * 5  # frames 2..6 of ten: two before, three after
    assert (play.run[at - 2] == play.run[at + 3]).all()
    play.action[4] = -1
    assert not {2, 3, 4} & set(play.windows(2, 3).tolist())


def test_a_model_that_knows_its_actions_has_no_error_at_any_step() -> None:
    model = ColourModel()
    play = make_play(model, 0)
    found = rollouts(model, [play], horizon=8, context="history", windows=500, seed=0)
    assert found.distance["model"].max() < 1e-3
    figures = rollout_figures(found, resamples=100, seed=0)
    assert set(figures) == {f"k{k}" for k in range(1, 9)}
    for step in figures.values():
        assert step["margin_copy"]["low"] > 0
        assert step["margin_wrong"]["low"] > 0
        assert step["margin_none"]["mean"] == pytest.approx(step["no_action"]["mean"], abs=1e-3)
    # One wrong action shifts another channel, or none: 20 or sqrt(2) x 20 away.
    wrong = np.round(found.distance["wrong_action"][:, 0] / 20, 2).astype(float)
    assert set(wrong.round(2).tolist()) <= {1.0, 1.41}
    assert found.episode.shape == (len(wrong),)


def test_a_model_that_ignores_its_actions_has_no_margin() -> None:
    model = ColourModel(knows=False)
    found = rollouts(model, [make_play(model, 0)], horizon=4, context="single", windows=50, seed=0)
    figures = rollout_figures(found, resamples=100, seed=0)
    assert len(found.episode) == 50
    for step in figures.values():
        assert step["margin_copy"]["mean"] == 0
        assert step["margin_wrong"]["mean"] == 0


def test_too_short_episodes_are_one_line() -> None:
    model = ColourModel()
    with pytest.raises(DataError, match="no run of 10 frames"):
        rollouts(
            model,
            [make_play(model, 0, steps=6)],
            horizon=8,
            context="single",
            windows=9,
            seed=0,
        )


def test_the_next_frame_is_found_in_its_episode() -> None:
    model = ColourModel()
    play = make_play(model, 0, steps=20)
    found = temporal_retrieval(model, [play], given="single", bank=256, windows=60, seed=0)
    figures = temporal_figures(found, resamples=100, seed=0)
    assert figures["chance"]["mean"] == pytest.approx(chance_mrr(20))
    assert figures["model"]["mean"] > 0.8  # equal frames of an episode tie
    assert figures["copy_last"]["mean"] < figures["model"]["mean"]
    assert (play.episode[found.nearest] == play.episode[found.start]).all()
    small = temporal_retrieval(model, [play], given="single", bank=5, windows=60, seed=0)
    assert small.chance[0] == pytest.approx(chance_mrr(5))


def test_states_hold_what_was_done_and_what_could_have_been() -> None:
    model = ColourModel()
    play = make_play(model, 0)
    at = play.windows(1, 1)
    states = states_of(model, play, at)
    following = play.z_cls[torch.from_numpy(at + 1)]
    assert torch.allclose(predict_claimed(model, states, "history").z_cls, following, atol=1e-3)
    every = predict_every(model, states, "history").z_cls
    assert every.shape == (len(at), 4, 3)
    assert torch.allclose(every[:, 1] - every[:, 0], torch.tensor([20.0, 0, 0]), atol=1e-3)
    assert torch.equal(states.past_z[:, 0], play.z_cls[torch.from_numpy(at - 1)])


def test_anomalies_of_a_known_world() -> None:
    model = ColourModel()
    found = encode_branches(model, make_branches(0), 0)
    ordinary, cases = of_branches(found, predict_every(model, found.states, "single"))
    assert len(ordinary.claimed) == 24
    assert ordinary.distance.max() < 1e-3
    by_kind = {case.kind: case for case in cases}
    assert set(by_kind) == {"teleport", "removal", "wrong_action"}
    assert by_kind["removal"].odd.distance == pytest.approx(25 * 3**0.5, abs=1e-2)
    assert len(by_kind["removal"].odd.claimed) == 12
    assert by_kind["teleport"].odd.distance == pytest.approx(45 * 3**0.5, abs=1e-2)
    wrong = by_kind["wrong_action"]
    # One state has one valid outcome: it has no pair.
    assert len(wrong.odd.claimed) == 23 * 12
    assert len(wrong.normal.claimed) == 23 * 4 + 1
    assert wrong.odd.distance.min() > 19.9
    assert wrong.share == 1

    _, cases = of_play(model, make_play(model, 0, steps=20), "single", CONFIG.augment, 0)
    by_kind = {case.kind: case for case in cases}
    assert set(by_kind) == {"frozen", "recolour", "jump"}
    assert by_kind["frozen"].odd.distance.min() > 19.9  # only where the picture moved


def test_the_whole_evaluation_of_a_known_world(tmp_path: Path) -> None:
    model = ColourModel(noise=1.0)
    test, val = make_play(model, 1, steps=20), make_play(model, 2, steps=20)
    outcome = evaluate(model, [test, val], [make_branches(0)], CONFIG)
    found = outcome.metrics["surprise"]["single"]
    for name in ("teleport", "removal", "wrong_action", "frozen", "jump"):
        assert found["auroc"][name]["low"] > 0.95, name
    assert found["p95"]["mean"] == pytest.approx(2.0, abs=0.4)
    assert found["wrong_action_share"]["mean"] == 1
    for name, figure in found["auroc"].items():  # one recording: the same figures
        assert found["auroc_of"][name] == {"colours": figure}
    modes = outcome.metrics["counterfactual"]["colours"]
    assert set(modes) == {"cls_only", "cls_only_history", "with_patches", "patches"}
    counterfactual = modes["cls_only"]
    assert counterfactual["model"]["mean"] > 0.95
    assert counterfactual["copy_last"]["mean"] < counterfactual["model"]["low"]
    assert outcome.metrics["rollout"]["k8"]["margin_copy"]["low"] > 0
    assert set(outcome.calibration) == {
        "surprise_scale",
        "surprise_threshold",
        "error",
        "confidence",
        "surprise",
        "history",
    }
    # The error head knows its noise: three dimensions of deviation one.
    assert outcome.calibration["error"]["measured"][0] == pytest.approx(1.6, abs=0.15)
    draw(model, outcome, 256, tmp_path)
    for path in tmp_path.glob("*.png"):
        with Image.open(path) as picture:
            assert picture.width > 200
    assert {path.stem for path in tmp_path.iterdir()} == {
        "rollout",
        "calibration",
        "roc",
        "ranks",
        "neighbours",
        "rollouts",
        "outcomes",
    }


def test_without_branch_sets_confidence_comes_from_the_next_frame() -> None:
    model = ColourModel(noise=2.0)
    test, val = make_play(model, 1), make_play(model, 2)
    outcome = evaluate(model, [test, val], [], CONFIG)
    assert outcome.metrics["counterfactual"] == {}
    found = outcome.metrics["calibration"]["single"]
    assert found["confidence"]["mean"] == pytest.approx(
        outcome.metrics["temporal"]["single"]["model"]["mean"], abs=0.1
    )


def test_no_episode_is_measured_with_what_it_helped_to_fit() -> None:
    model = ColourModel(noise=1.0)
    found = encode_branches(model, make_branches(0), 0)
    ordinary, cases = of_branches(found, predict_every(model, found.states, "single"))
    columns = ordinary.own_expectation, 1 / (1 + ordinary.distance), ordinary.episode
    scored = Scored([ordinary], cases, [columns])
    turns = in_turns(scored, 3, 0)
    parts = [set(turn.rest.ordinary[0].episode) for turn in turns]
    assert len(parts) == 3
    assert set.union(*parts) == set(ordinary.episode)
    assert sum(map(len, parts)) == 8
    one = turns[0]
    for case in one.rest.cases:
        assert set(case.odd.episode) | set(case.normal.episode) <= parts[0]
    assert set(one.rest.columns()[2]) == parts[0]
    others = scored.among(np.concatenate([list(part) for part in parts[1:]]))
    assert one.tables == calibrate(others, Scored()).tables
    with pytest.raises(DataError, match="two held-out episodes"):
        in_turns(scored.among(ordinary.episode[:1]), 3, 0)


class Square(ColourModel):
    """Knows the actions of the tests' shards."""

    vocabulary = ("down", "up", "right", "left", "stay")


def test_play_is_read_whole_and_renamed(tiny_store: ShardStore) -> None:
    plays = read_play(tiny_store, "test", Square(), 100)
    assert [play.name for play in plays] == ["one", "two"]
    play = plays[0]
    assert len(play) == 48  # two episodes of 24 make the share of fifty
    assert len(np.unique(play.episode)) == 2
    assert not set(play.episode) & set(plays[1].episode)
    rows = tiny_store.rows("test", ["one"])
    own = tiny_store.table["action"].to_numpy()[rows[:23]]
    names = [Square.vocabulary[i] for i in play.action[:23]]
    assert names == [("stay", "left", "right", "up", "down")[i] for i in own]
    assert play.action[23] == -1
    few = read_play(tiny_store, "test", Square(), 10, ["two"])
    assert len(few[0]) == 24  # never less than an episode
    with pytest.raises(ModelError, match=r"recording one has the action 'left'.*it knows stay"):
        read_play(tiny_store, "test", ColourModel(), 100)


def test_the_world_of_these_tests() -> None:
    assert len(SHIFT) == len(NAMES)

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from iwm.evaluation.surprise import (
    KINDS,
    Transitions,
    auroc,
    fit,
    quantile_figure,
    roc_curve,
    weighted_quantile,
)

scores = st.lists(st.integers(-5, 5), min_size=2, max_size=60).map(lambda x: np.array(x, float))
TABLE = ([0.0, 10.0], [0.0, 10.0])


def play(seed: int, spread: float, name: str, n: int = 6000, actions: int = 4) -> Transitions:
    """Transitions whose distance is ``spread`` times a fixed law, as the model expects."""
    random = np.random.default_rng(seed)
    claimed = random.integers(0, actions, n)
    by_action = spread * random.gamma(9, 0.4, (n, actions))
    by_action[np.arange(n), claimed] = spread * random.gamma(9, 0.1, n)
    expected = np.full((n, actions), 0.9 * spread)
    return Transitions(name, by_action, expected, claimed, np.arange(n) // 50)


@given(scores, scores)
def test_auroc_is_the_share_of_pairs_won(normal: Any, odd: Any) -> None:
    pairs = (odd[:, None] > normal).mean() + 0.5 * (odd[:, None] == normal).mean()
    found = auroc(normal, np.arange(len(normal)), odd, np.arange(len(odd)), resamples=20)
    assert found["mean"] == pytest.approx(pairs)
    mirrored = auroc(odd, np.arange(len(odd)), normal, np.arange(len(normal)), resamples=20)
    assert found["mean"] + mirrored["mean"] == pytest.approx(1)


def test_the_interval_of_auroc_widens_when_episodes_agree() -> None:
    random = np.random.default_rng(0)
    level = random.normal(size=10).repeat(40)
    normal, odd = level + 0.1 * random.normal(size=400), level + 0.3
    episodes = np.arange(10).repeat(40)
    together = auroc(normal, episodes, odd, episodes)
    apart = auroc(normal, np.arange(400), odd, np.arange(400))
    assert together["mean"] == apart["mean"]
    assert together["low"] < together["mean"] < together["high"]
    assert together["high"] - together["low"] > apart["high"] - apart["low"]


def test_the_roc_curve_encloses_the_area() -> None:
    random = np.random.default_rng(0)
    normal, odd = random.normal(size=2000), random.normal(1.5, 1, 2000)
    curve = roc_curve(normal, odd)
    area = np.trapezoid(curve["detected"], curve["false_alarms"])
    labels = np.arange(2000)
    assert area == pytest.approx(auroc(normal, labels, odd, labels, resamples=10)["mean"], abs=0.01)
    assert curve["detected"][-1] == 1


@given(scores)
def test_equal_weights_give_the_plain_quantile(values: Any) -> None:
    found = weighted_quantile(values, np.ones(len(values)), 0.95)
    assert found == np.quantile(values, 0.95, method="inverted_cdf")


def test_the_interval_of_a_quantile_holds_it() -> None:
    values = np.random.default_rng(0).normal(size=2000)
    found = quantile_figure(values, np.ones(2000), np.arange(2000) // 10, resamples=200)
    assert found["low"] < 1.645 < found["high"]
    assert found["high"] - found["low"] < 0.4


def test_ordinary_play_has_its_95th_percentile_at_two() -> None:
    fitted = fit([play(0, 1.0, "one"), play(1, 3.0, "two")], TABLE)
    assert set(fitted.scale) == set(KINDS)
    both = [play(2, 1.0, "one"), play(3, 3.0, "two")]
    for kind in KINDS:
        values = np.concatenate([fitted(kind, seen) for seen in both])
        assert (values > 2.0).mean() == pytest.approx(0.05, abs=0.01)


def test_recordings_weigh_alike_however_long_they_were_played() -> None:
    short, long = play(0, 1.0, "one", n=2000), play(1, 3.0, "two", n=20000)
    even = fit([play(0, 1.0, "one", n=20000), long], TABLE)
    assert fit([short, long], TABLE).scale["distance"] == pytest.approx(
        even.scale["distance"], rel=0.03
    )


def test_relative_surprise_holds_where_the_scenario_is_harder() -> None:
    fitted = fit([play(0, 1.0, "easy")], TABLE)
    harder = play(1, 2.0, "hard")
    assert np.quantile(fitted("relative", harder), 0.95) == pytest.approx(2.0, abs=0.15)
    assert np.quantile(fitted("distance", harder), 0.95) > 3


def test_only_the_action_measure_sees_a_claim_that_another_action_explains_better() -> None:
    seen = play(0, 1.0, "one")
    fitted = fit([seen], TABLE)
    # Two actions with near outcomes, the wrong one claimed: ordinary distances throughout.
    by_action = np.full((400, 4), 6.0)
    by_action[:, 0], by_action[:, 1] = 1.2, 0.1
    expected, episode = np.full((400, 4), 0.9), np.arange(400)
    claimed = Transitions("one", by_action, expected, np.zeros(400, int), episode)
    labels = seen.episode
    found = {
        kind: auroc(fitted(kind, seen), labels, fitted(kind, claimed), episode, resamples=10)
        for kind in KINDS
    }
    assert found["action"]["mean"] > 0.95 > 0.9 > found["distance"]["mean"]
    assert found["combined"]["mean"] > found["relative"]["mean"]


def test_without_a_choice_of_actions_the_action_measure_is_silent() -> None:
    random = np.random.default_rng(0)
    alone = Transitions(
        "numbers",
        random.gamma(9, 0.1, (500, 1)),
        np.full((500, 1), 0.9),
        np.zeros(500, int),
        np.arange(500) // 10,
    )
    fitted = fit([alone], TABLE)
    assert np.abs(fitted("action", alone)).max() == 0
    assert np.quantile(fitted("combined", alone), 0.95) == pytest.approx(2.0, abs=0.01)

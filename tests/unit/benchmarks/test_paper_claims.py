"""The parts of the paper's-claims script, and the whole of it at the smallest size."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.paper_claims.__main__ import page, report, run
from benchmarks.paper_claims.arms import ARMS, Scale, model_settings
from benchmarks.paper_claims.claims import CLAIMS, decide, interval, rank_correlation
from benchmarks.paper_claims.measure import r_squared, ridge, tune
from benchmarks.paper_claims.world import PictureBatches, draw_pictures
from iwm.evaluation.statistics import chance_mrr
from iwm.models.iwm import model_config
from iwm.models.predictor import Predictor

TINY = Scale(
    seeds=2,
    pictures=64,
    epochs=2,
    images=2,
    labelled=48,
    tuning_epochs=1,
    batch_size=32,
    bank=8,
    queries=2,
)


def _results(**mrr: float) -> dict[str, list[dict[str, float]]]:
    """Three seeds of every arm, a little apart, with the given MRRs."""
    rows: dict[str, list[dict[str, float]]] = {}
    for arm in ARMS:
        value = mrr.get(arm.name.replace("-", "_"), 0.5)
        rows[arm.name] = [
            {
                "mrr": value + 0.001 * seed,
                "mrr_cls_only": value,
                "mrr_patches": value,
                "probe": 1 - value,
                "effective_rank": 9.0,
                "tuned_pretrained": 0.8 + 0.01 * seed,
                "tuned_random": 0.5,
            }
            for seed in range(3)
        ]
    return rows


def test_figures_like_the_papers_reproduce_every_claim() -> None:
    results = _results(
        none=0.024, sequence=0.82, feature=0.79, shallow=0.09, jitter=0.25, shallow_jitter=0.11
    )
    chance = chance_mrr(256)
    assert {claim.judge(results, chance)["verdict"] for claim in CLAIMS} == {"reproduced"}


def test_the_opposite_of_the_papers_figures_is_not_reproduced() -> None:
    results = _results(
        none=0.8, sequence=0.1, feature=0.1, shallow=0.5, jitter=0.9, shallow_jitter=0.2
    )
    verdicts = {claim.name: claim.judge(results, 0.024)["verdict"] for claim in CLAIMS}
    for name in ("unconditioned", "sequence", "feature", "interaction"):
        assert verdicts[name] == "not reproduced", name


def test_an_interval_that_holds_the_bound_decides_nothing() -> None:
    figure = interval([-1.0, 0.2, 1.0])
    assert decide(figure, "above", 0.0) == "not decided"
    assert decide(figure, "below", 0.0) == "not decided"


def test_students_interval_of_three_values() -> None:
    # t(0.975, 2) = 4.302653, standard error 1 / sqrt(3)
    figure = interval([1.0, 2.0, 3.0])
    assert figure["mean"] == pytest.approx(2.0)
    assert figure["high"] - 2.0 == pytest.approx(4.302653 / 3**0.5, rel=1e-6)


def test_one_seed_has_no_interval() -> None:
    with pytest.raises(ValueError, match="two"):
        interval([1.0])


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=8))
def test_rank_correlation_is_one_with_itself_and_minus_one_with_its_opposite(
    values: list[float],
) -> None:
    varies = len(set(values)) > 1
    assert rank_correlation(values, values) == pytest.approx(float(varies))
    assert rank_correlation(values, [-v for v in values]) == pytest.approx(-float(varies))


def test_pictures_are_the_same_again_and_their_truth_is_in_range() -> None:
    one, again = draw_pictures(12, 5), draw_pictures(12, 5)
    assert torch.equal(one.images, again.images)
    assert torch.equal(one.player, again.player)
    assert int(one.count.min()) >= 0
    assert int(one.count.max()) <= 6
    assert float(one.player.abs().max()) <= 1


def test_batches_go_on_from_any_step() -> None:
    batches = PictureBatches(draw_pictures(20, 0), 6, seed=1)
    whole = [batch.keys for batch in batches.epoch(2)]
    assert len(whole) == len(batches) == 3
    assert [batch.keys for batch in batches.epoch(2, 1)] == whole[1:]
    assert len({key for keys in whole for key in keys}) == 18


def test_a_linear_property_is_read_by_the_probe() -> None:
    torch.manual_seed(0)
    features, others, weights = torch.randn(400, 8), torch.randn(200, 8), torch.randn(8, 3)
    answer = ridge(features, features @ weights + 2, others)
    assert r_squared(answer, others @ weights + 2) > 0.99
    assert r_squared((others @ weights).mean(0).expand(200, 3), others @ weights) == pytest.approx(
        0.0, abs=1e-5
    )


def test_fine_tuning_learns_and_leaves_the_given_predictor_alone() -> None:
    torch.manual_seed(0)
    settings = model_config(model_settings(ARMS[3]))
    predictor = Predictor(settings)
    before = {name: value.clone() for name, value in predictor.state_dict().items()}
    rows, columns = settings.grid
    seen = (
        torch.randn(256, settings.encoder.width),
        torch.randn(256, rows * columns, settings.encoder.width),
    )
    wanted = seen[0][:, :3]
    answer = tune(predictor, seen, wanted, seen, epochs=20, seed=0)
    assert r_squared(answer, wanted) > 0.3
    assert all(torch.equal(before[name], value) for name, value in predictor.state_dict().items())


@pytest.mark.slow
def test_the_whole_of_it_goes_on_where_it_was(tmp_path: Path) -> None:
    found = report(run(TINY, tmp_path, workers=1), TINY)
    assert set(found["arms"]) == {arm.name for arm in ARMS}
    verdicts = {claim["verdict"] for claim in found["claims"].values()}
    assert verdicts <= {"reproduced", "not reproduced", "not decided"}
    assert "| no conditioning |" in page(found)
    json.dumps(found, allow_nan=False)
    trained = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/model.safetensors")}
    assert len(trained) == 2 * len(ARMS)
    again = report(run(TINY, tmp_path, workers=1), TINY)
    assert again == found
    assert trained == {path: path.stat().st_mtime_ns for path in trained}

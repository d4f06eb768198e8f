"""Which cards a stage gets, with cards that are only names."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from flows.placement import PROCESSES, VISIBLE, Placement, cards, placed

CARDS = ("0", "1")


def test_what_the_environment_allows_is_what_there_is() -> None:
    assert cards({VISIBLE: "1,3"}) == ("1", "3")
    assert cards({VISIBLE: ""}) == ()
    assert cards({VISIBLE: "MIG-GPU-ab/1/0"}) == ("MIG-GPU-ab/1/0",)


def test_without_cards_nothing_is_said(tmp_path: Path) -> None:
    with placed("train@core", "spread", (), tmp_path) as environ:
        assert environ == {}


def test_two_stages_side_by_side_see_a_card_each_and_a_third_waits(tmp_path: Path) -> None:
    with (
        placed("train@invariant", "cards", CARDS, tmp_path) as one,
        ThreadPoolExecutor(1) as pool,
    ):
        with placed("train@equivariant", "cards", CARDS, tmp_path) as other:
            assert (one[VISIBLE], other[VISIBLE]) == ("0", "1")
            third = pool.submit(take, "evaluate@core", "cards", tmp_path)
            time.sleep(0.2)
            assert not third.done()
        assert third.result(30) == {VISIBLE: "1"}


def test_a_training_may_take_all_cards_and_an_evaluation_takes_one(tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        with placed("train@core", "spread", CARDS, tmp_path) as environ:
            assert environ == {VISIBLE: "0,1", PROCESSES: "2"}
            waiting = [
                pool.submit(take, stage, "spread", tmp_path)
                for stage in ("evaluate@core", "train@action")
            ]
            time.sleep(0.2)
            assert not any(one.done() for one in waiting)
        assert waiting[0].result(30)[VISIBLE] in CARDS
        assert waiting[1].result(30)[PROCESSES] == "2"


def take(stage: str, placement: Placement, locks: Path) -> dict[str, str]:
    with placed(stage, placement, CARDS, locks) as environ:
        return dict(environ)


@pytest.mark.usefixtures("prefect_server")
def test_stages_of_a_flow_see_their_card(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from flows.train import train_iwm

    work = (repo / "work.py").read_text()
    told = f"(out / 'seen').write_text(os.environ.get('{VISIBLE}', 'all'))\n"
    (repo / "work.py").write_text(work + told)
    monkeypatch.setenv(VISIBLE, "5")
    # The limit guards real accelerators only; `auto` without one passes it by.
    assert train_iwm(targets=["train"], return_state=True).is_completed()
    for phase in ("core", "other"):
        assert (repo / "artifacts" / f"train@{phase}" / "seen").read_text() == "5"
    assert (repo / ".run" / "card-5.lock").exists()

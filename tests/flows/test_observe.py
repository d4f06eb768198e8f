"""What flow runs tell Prometheus, and the run id they give to what they run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import toy

from flows.observe import named
from iwm import logs
from iwm.errors import ConfigError
from iwm.monitoring import board as boards
from iwm.monitoring import catalogue as c
from iwm.monitoring.board import Board
from pipelines.status import last_flows


def test_a_run_id_that_is_given_is_stronger_than_prefects(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(logs.RUN_ID, raising=False)
    with named("flow-run-1") as name:
        assert name == os.environ[logs.RUN_ID] == "flow-run-1"
    assert logs.RUN_ID not in os.environ
    monkeypatch.setenv(logs.RUN_ID, "tonight")
    with named("flow-run-1") as name:
        assert name == "tonight"
    assert os.environ[logs.RUN_ID] == "tonight"
    monkeypatch.setenv(logs.RUN_ID, "two words")
    with pytest.raises(ConfigError, match="IWM_RUN_ID"), named("flow-run-1"):
        pass


@pytest.mark.usefixtures("prefect_server")
def test_runs_are_counted_by_the_state_they_end_in(
    repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows.train import train_iwm

    monkeypatch.setenv(boards.FOLDER, str(tmp_path / "metrics"))

    def said() -> Board:
        board = Board("flow_train-iwm")
        board.take_up(c.METRICS)
        return board

    toy.behave(repo, ingest="fail")
    assert train_iwm(targets=["ingest"], return_state=True).is_failed()
    assert said().get(c.FLOW_RUNS, "train-iwm", "failed") == 1
    assert said().get(c.FLOW_SUCCESS, "train-iwm") is None
    toy.behave(repo)
    for _ in range(2):
        assert train_iwm(targets=["ingest"], return_state=True).is_completed()
    board = said()
    assert board.get(c.FLOW_RUNS, "train-iwm", "failed") == 1
    assert board.get(c.FLOW_RUNS, "train-iwm", "completed") == 2
    assert board.get(c.FLOW_RUNNING, "train-iwm") == 0
    seconds, success = (board.get(m, "train-iwm") for m in (c.FLOW_SECONDS, c.FLOW_SUCCESS))
    assert seconds is not None
    assert success is not None
    assert seconds > 0

    # The same runs, as `iwm status` shows them.
    from prefect.settings import PREFECT_API_URL

    found = last_flows(str(PREFECT_API_URL.value()))
    assert found["status"] == "ok"
    shown = [(run["flow"], run["state"]) for run in found["runs"][:3]]
    assert shown == [("train-iwm", state) for state in ("Completed", "Completed", "Failed")]
    assert last_flows("http://127.0.0.1:9/api")["status"] == "does not answer"

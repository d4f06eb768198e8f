"""What a flow run tells the outside: its run id, its logs' format, its metrics."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from iwm import logs
from iwm.monitoring import catalogue as c
from iwm.monitoring.board import Board, folder

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun, State
    from prefect.flows import Flow


@contextmanager
def named(run: str) -> Iterator[str]:
    """Give a run and everything below it one run id: ``IWM_RUN_ID``, or Prefect's id ``run``.

    Raises:
        ConfigError: a variable of the logs holds what it cannot.
    """
    given = os.environ.get(logs.RUN_ID)
    os.environ[logs.RUN_ID] = given or run
    try:
        if logs.as_json():
            logs.take_over(logs.JsonFormatter({"stage": "flow"}))
        yield logs.run_id()
    finally:
        if not given:
            os.environ.pop(logs.RUN_ID, None)


def _board(flow: str) -> Board:
    board = Board(f"flow_{flow}")
    board.take_up((c.FLOW_RUNS, c.FLOW_RUNNING, c.FLOW_SECONDS, c.FLOW_SUCCESS))
    return board


def began(flow: Flow[..., Any], _: FlowRun, __: State[Any]) -> None:
    """Hook of every flow, called when a run begins."""
    if folder() is None:
        return
    board = _board(flow.name)
    board.set(c.FLOW_RUNNING, 1, flow.name)
    board.write()


def counted(flow: Flow[..., Any], run: FlowRun, state: State[Any]) -> None:
    """Hook of every flow, called when a run is over."""
    if folder() is None:
        return
    board = _board(flow.name)
    board.add(c.FLOW_RUNS, flow.name, state.type.value.lower())
    board.set(c.FLOW_RUNNING, 0, flow.name)
    now = time.time()
    if run.start_time is not None:
        board.set(c.FLOW_SECONDS, max(0.0, now - run.start_time.timestamp()), flow.name)
    if state.is_completed():
        board.set(c.FLOW_SUCCESS, now, flow.name)
    board.write()

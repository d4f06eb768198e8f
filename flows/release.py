"""Flow ``release``: register what passed its gates, package the champion, renew the report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect import flow, get_run_logger
from prefect.runtime import flow_run
from prefect.task_runners import ThreadPoolTaskRunner

from flows import graph
from flows.notify import HOOKS
from flows.outcome import publish, settle
from flows.process import supervised
from flows.tasks import submit
from iwm.files import read_json

if TYPE_CHECKING:
    from prefect.client.schemas.objects import State

STAGES = ("register", "package", "report")
PACKAGE = Path("artifacts/package.json")


@flow(name="release", task_runner=ThreadPoolTaskRunner(max_workers=len(STAGES) + 1), **HOOKS)  # type: ignore[arg-type]
def release(force: bool = False) -> State[Any]:
    """Bring registry, Bento and report up to date with the models as they lie there.

    Args:
        force: run the stages again even when nothing changed.
    """
    with supervised(str(flow_run.id)):
        futures = submit(graph.load().only(STAGES), force=force, gpu="never")
        state = settle(futures)
        if state.is_completed():
            tag = read_json(PACKAGE)["tag"]
            get_run_logger().info("released %s", tag)
            state.message = f"released {tag}"
        publish(futures, state)
        return state


if __name__ == "__main__":
    release()

"""Flow ``train-iwm``: the whole graph of dvc.yaml, each stage a task.

Run from the repository root: ``prefect deployment run train-iwm`` against a server and a
worker, or ``python -m flows.train`` in this process.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prefect import flow
from prefect.runtime import flow_run
from prefect.task_runners import ThreadPoolTaskRunner

from flows import graph
from flows.notify import HOOKS
from flows.outcome import publish, settle
from flows.placement import Placement
from flows.process import supervised
from flows.tasks import RETRY_DELAYS_S, GpuUse, submit, use_profile

if TYPE_CHECKING:
    from prefect.client.schemas.objects import State

# A waiting task occupies a thread, so there must be more of them than stages; what runs at
# once is bounded by the graph and, on accelerators, by the concurrency limit.
_THREADS = 128


@flow(name="train-iwm", task_runner=ThreadPoolTaskRunner(max_workers=_THREADS), **HOOKS)  # type: ignore[arg-type]
def train_iwm(
    profile: str | None = None,
    targets: list[str] | None = None,
    force: bool = False,
    gpu: GpuUse = "auto",
    placement: Placement = "cards",
    retry_delays_s: list[float] = list(RETRY_DELAYS_S),  # noqa: B006 - never changed
) -> State[Any]:
    """Walk the graph of dvc.yaml: record when there is no data, then every stage in its order.

    Args:
        profile: written to params.yaml first; ``None`` keeps params.yaml as it is.
        targets: stages to make, with everything above them; ``train`` means all its phases,
            ``None`` the whole graph.
        force: run stages again even when nothing changed.
        gpu: whether training and evaluation hold a slot of the limit ``iwm-gpu``: always,
            never, or when the machine has an accelerator.
        placement: of several cards, ``cards`` gives each stage one of its own, ``spread`` gives a
            training all, with a process on each.
        retry_delays_s: seconds before each further attempt of a stage that was killed or
            found DVC's lock taken. Errors of the stage itself, gates among them, stand.
    """
    with supervised(str(flow_run.id)):
        if profile is not None:
            use_profile(profile)
        stages = graph.load()
        if targets:
            stages = stages.up_to(targets)
        futures = submit(
            stages, force=force, gpu=gpu, placement=placement, retry_delays_s=retry_delays_s
        )
        state = settle(futures)
        publish(futures, state)
        return state


if __name__ == "__main__":
    train_iwm()

"""The tasks that flows are made of: one per DVC stage, and the data before them."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture
from prefect.runtime import flow_run

from flows.graph import Graph, group
from flows.placement import Placement, cards, placed
from flows.process import InfrastructureError, StageFailed, judge, supervisor_of
from pipelines._mend import mend
from pipelines._repro import DATA_DVC, data_is_empty
from pipelines._stage import DATA

if TYPE_CHECKING:
    from prefect.client.schemas.objects import State, TaskRun
    from prefect.tasks import Task

GPU_LIMIT = "iwm-gpu"
"""The global concurrency limit that stages on an accelerator hold; `make prefect-up` makes it."""

GPU_STAGES = frozenset({"train", "evaluate"})

GpuUse = Literal["auto", "always", "never"]

RETRY_DELAYS_S = (2.0, 10.0, 30.0, 60.0, 120.0)


def _worth_retrying(_: Task[..., Any], __: TaskRun, state: State[Any]) -> bool:
    """Only what was killed or found DVC's lock taken; a gate's verdict stands."""
    try:
        state.result()
    except InfrastructureError:
        return True
    except BaseException:
        return False
    return False


def has_gpu() -> bool:
    """Whether this machine has an NVIDIA or AMD accelerator, told by its device node."""
    return Path("/dev/nvidiactl").exists() or Path("/dev/kfd").exists()


def gpu_slot(stage: str, gpu: GpuUse) -> AbstractContextManager[None]:
    """One slot of :data:`GPU_LIMIT` for stages that compute on the accelerator.

    ``strict``: without the limit on the server the stage fails instead of running
    unguarded. A lease that cannot be renewed (the server restarts) warns: hours of
    training are not thrown away for it.
    """
    wanted = gpu == "always" or (gpu == "auto" and has_gpu())
    if not wanted or group(stage) not in GPU_STAGES:
        return nullcontext()
    from prefect.concurrency.sync import concurrency

    return concurrency(
        GPU_LIMIT, occupy=1, strict=True, raise_on_lease_renewal_failure=False, lease_duration=300
    )


def _run(name: str, *arguments: str, environ: Mapping[str, str] | None = None) -> None:
    """``python arguments`` under the flow run's supervisor, streamed to the task's log."""
    supervisor = supervisor_of(str(flow_run.id))
    command = [sys.executable, *arguments]
    ended = supervisor.run(command, get_run_logger().info, environ=environ)
    if error := judge(name, ended):
        raise error


@task(name="profile", cache_policy=NO_CACHE)
def use_profile(profile: str) -> None:
    """Write a profile's values to params.yaml."""
    _run("profile", "-c", "from iwm.cli import main; main()", "profile", "use", profile)


@task(
    name="record",
    cache_policy=NO_CACHE,
    retries=len(RETRY_DELAYS_S),
    retry_delay_seconds=list(RETRY_DELAYS_S),
    retry_condition_fn=_worth_retrying,
)
def ensure_data() -> None:
    """Record when ``data/`` is empty; make ``data.dvc`` name what is in it.

    DVC cannot own this step: a stage's output below ``data/`` overlaps with ``data.dvc``,
    and ``dvc repro`` refuses to start while its source is missing.
    """
    for line in mend():
        get_run_logger().warning(line)
    if data_is_empty():
        _run("record", "-m", "pipelines.record")
    if data_is_empty():
        raise StageFailed(f"record failed: {DATA}/ is still empty")
    # Hashing is by size and time stamp for known files, so this is quick when nothing changed.
    _run(str(DATA_DVC), "-m", "dvc", "add", "--quiet", str(DATA))


@task(
    name="stage",
    task_run_name="{stage}",
    cache_policy=NO_CACHE,
    retries=len(RETRY_DELAYS_S),
    retry_delay_seconds=list(RETRY_DELAYS_S),
    retry_condition_fn=_worth_retrying,
)
def run_stage(
    stage: str, force: bool = False, gpu: GpuUse = "auto", placement: Placement = "cards"
) -> str:
    """Bring one stage of dvc.yaml up to date, without those above it.

    Returns:
        The stage's name.

    Raises:
        StageFailed: the stage ended with an error; a gate's message is its verdict.
        InfrastructureError: it was killed, or DVC's lock was taken; tried again.
    """
    options = ["--force"] if force else []
    computes = gpu != "never" and group(stage) in GPU_STAGES
    with (
        gpu_slot(stage, gpu),
        placed(stage, placement, cards() if computes else ()) as environ,
    ):
        _run(stage, "-m", "dvc", "repro", "--single-item", *options, stage, environ=environ)
    return stage


def submit(
    graph: Graph,
    *,
    force: bool = False,
    gpu: GpuUse = "auto",
    placement: Placement = "cards",
    retry_delays_s: Sequence[float] = RETRY_DELAYS_S,
) -> dict[str, PrefectFuture[Any]]:
    """Submit every stage of a graph, each waiting for those it depends on.

    A stage whose predecessor fails ends as ``NotReady``; the others run on.

    Returns:
        Stage -> future, in topological order, with ``record`` first where data is read.
    """
    futures: dict[str, PrefectFuture[Any]] = {}
    patience: Mapping[str, Any] = {
        "retries": len(retry_delays_s),
        "retry_delay_seconds": list(retry_delays_s),
    }
    if graph.readers_of_data:
        futures["record"] = ensure_data.with_options(**patience).submit()
    stage_task = run_stage.with_options(**patience)
    for stage, above in graph.upstream.items():
        before = [futures[name] for name in above]
        if stage in graph.readers_of_data:
            before.append(futures["record"])
        futures[stage] = stage_task.submit(
            stage, force, gpu, placement, wait_for=before, return_state=False
        )
    return futures

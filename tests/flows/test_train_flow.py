"""The flows against a temporary Prefect server, on the toy graph."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import toy

pytestmark = pytest.mark.usefixtures("prefect_server")


def train(**parameters: Any) -> Any:
    from flows.train import train_iwm

    return train_iwm(**parameters, return_state=True)


def task_states(state: Any) -> dict[str, str]:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId

    with get_client(sync_client=True) as client:
        runs = client.read_task_runs(
            flow_run_filter=FlowRunFilter(
                id=FlowRunFilterId(any_=[state.state_details.flow_run_id])
            )
        )
    return {run.name: run.state_name or "" for run in runs}


def artifacts(state: Any) -> dict[str, Any]:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId

    with get_client(sync_client=True) as client:
        found = client.read_artifacts(
            artifact_filter=ArtifactFilter(
                flow_run_id=ArtifactFilterFlowRunId(any_=[state.state_details.flow_run_id])
            )
        )
    return {artifact.key or "": artifact.data for artifact in found}


def test_a_failing_gate_fails_the_flow_by_name_and_its_siblings_run_on(repo: Path) -> None:
    toy.behave(repo, gate_core="fail", train_other="talk")
    (repo / "reports" / "gates").mkdir(parents=True)
    report = {"gate": "core", "passed": False, "rules": [{"figure": "mrr.model", "value": 0.031}]}
    (repo / "reports" / "gates" / "core.json").write_text(json.dumps(report))

    state = train(targets=["register", "gate"])

    assert state.is_failed()
    assert state.message == (
        "gate@core failed: mrr.model 0.031 is 0.169 below the threshold 0.2. "
        "Not run, as they depend on it: register"
    )
    states = task_states(state)
    assert states["gate@core"] == "Failed"
    assert states["gate@other"] == "Completed"
    assert states["register"] == "NotReady"
    assert len(toy.calls(repo, "gate@core")) == 1  # a verdict is not tried again
    assert (repo / "artifacts" / "gate@other" / "made").exists()
    assert toy.calls(repo, "register") == []
    shown = artifacts(state)
    assert "mrr.model" in shown["gates"]
    assert "gate@core failed" in shown["summary"]

    # data.dvc was made to name what lies in data/.
    status = subprocess.run(
        [sys.executable, "-m", "dvc", "status", "--quiet", "data.dvc"], cwd=repo, check=False
    )
    assert status.returncode == 0


def test_only_what_was_killed_is_tried_again(repo: Path) -> None:
    toy.behave(repo, train_core="kill2", train_other="crash")
    state = train(targets=["train"], retry_delays_s=[0.1, 0.1])
    assert state.message == "train@other failed: ValueError: a bug"
    assert len(toy.calls(repo, "train@core")) == 3
    assert len(toy.calls(repo, "train@other")) == 1
    assert task_states(state)["train@core"] == "Completed"


def test_attempts_are_bounded_and_the_signal_is_named(repo: Path) -> None:
    toy.behave(repo, ingest="kill9")
    state = train(targets=["ingest"], retry_delays_s=[0.1])
    assert state.message == "ingest was ended by SIGKILL"
    assert len(toy.calls(repo, "ingest")) == 2


@pytest.mark.slow
def test_a_missing_gpu_limit_stops_the_stage_instead_of_running_unguarded(repo: Path) -> None:
    state = train(targets=["train@core"], gpu="always")
    assert state.is_failed()
    assert "train@core failed: ConcurrencySlotAcquisitionError" in (state.message or "")
    assert toy.calls(repo, "train@core") == []


@pytest.mark.slow
def test_gpu_stages_take_turns(repo: Path) -> None:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate

    from flows.tasks import GPU_LIMIT

    with get_client(sync_client=True) as client:
        client._client.post(  # the synchronous client has no method of its own for it
            "/v2/concurrency_limits/",
            json=GlobalConcurrencyLimitCreate(name=GPU_LIMIT, limit=1).model_dump(mode="json"),
        ).raise_for_status()
    try:
        assert train(targets=["train"], gpu="always").is_completed()
        first, second = sorted(toy.calls(repo, "train@core") + toy.calls(repo, "train@other"))
        made = min(
            (repo / "artifacts" / f"train@{phase}" / "made").stat().st_mtime
            for phase in ("core", "other")
        )
        assert first < made < second
    finally:
        with get_client(sync_client=True) as client:
            client._client.delete(f"/v2/concurrency_limits/{GPU_LIMIT}")


@pytest.mark.slow
def test_release_names_the_bento(repo: Path) -> None:
    from flows.release import release

    assert train(targets=["gate"]).is_completed()
    state = release(return_state=True)
    assert state.message == "released iwm:abc"
    assert len(toy.calls(repo, "package")) == 1
    assert "stages" in artifacts(state)


def test_an_unknown_target_fails_the_run_in_one_line(repo: Path) -> None:
    state = train(targets=["trian"])
    assert state.is_failed()
    assert "target 'trian' is no stage of dvc.yaml" in (state.message or "")

"""The job template of the Kubernetes pool: what Prefect accepts, and the job it makes of it."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

FOLDER = Path(__file__).parents[2] / "flows" / "kubernetes"
TEMPLATE: dict[str, Any] = json.loads((FOLDER / "job-template.json").read_text())
DEPLOYMENT = yaml.safe_load((FOLDER / "prefect.yaml").read_text())["deployments"][0]


def test_variables_and_placeholders_are_the_same() -> None:
    used = set(re.findall(r"{{ (\w+) }}", json.dumps(TEMPLATE["job_configuration"])))
    assert used == set(TEMPLATE["variables"]["properties"])
    assert set(DEPLOYMENT["work_pool"]["job_variables"]) <= used


def test_the_variables_are_those_of_prefects_own_template_and_more() -> None:
    import prefect.server.api as api

    views = Path(api.__file__).parent / "collections_data/views/aggregate-worker-metadata.json"
    worker = json.loads(views.read_text())["prefect-kubernetes"]["kubernetes"]
    theirs = worker["default_base_job_configuration"]
    ours = TEMPLATE["job_configuration"]
    assert set(ours) <= set(theirs["job_configuration"])
    container = theirs["job_configuration"]["job_manifest"]["spec"]["template"]["spec"][
        "containers"
    ][0]
    mine = ours["job_manifest"]["spec"]["template"]["spec"]["containers"][0]
    for field in ("name", "env", "image", "imagePullPolicy", "args"):
        assert mine[field] == container[field]
    for name, variable in TEMPLATE["variables"]["properties"].items():
        known = theirs["variables"]["properties"].get(name)
        assert known is None or known["type"] == variable["type"], name


async def rendered(values: dict[str, Any], job_class: Any) -> Any:
    """The job of a flow run of the deployment, through a real server's pool and deployment."""
    from prefect import get_client
    from prefect.client.schemas.actions import WorkPoolCreate

    from flows.train import train_iwm

    async with get_client() as client:
        pool = WorkPoolCreate(name="kubernetes", type="kubernetes", base_job_template=TEMPLATE)
        work_pool = await client.create_work_pool(pool, overwrite=True)
        flow_id = await client.create_flow(train_iwm)
        deployment_id = await client.create_deployment(
            flow_id=flow_id,
            name=DEPLOYMENT["name"],
            work_pool_name="kubernetes",
            job_variables={**DEPLOYMENT["work_pool"]["job_variables"], **values},
        )
        run = await client.create_flow_run_from_deployment(deployment_id)
        return await job_class.resolve_for_flow_run(
            run, client=client, work_pool=work_pool, worker_name="here"
        )


def spec_of(job: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    pod: dict[str, Any] = job.job_manifest["spec"]["template"]["spec"]
    return pod, pod["containers"][0]


def test_a_flow_run_becomes_a_job(prefect_server: None) -> None:
    from prefect.workers.base import BaseJobConfiguration

    class Job(BaseJobConfiguration):
        job_manifest: dict[str, Any]
        namespace: str

    job = asyncio.run(rendered({"gpus": 2, "memory": "128Gi", "env": {"IWM_NODES": "1"}}, Job))
    pod, container = spec_of(job)
    assert job.namespace == "iwm"
    assert container["image"] == DEPLOYMENT["work_pool"]["job_variables"]["image"]
    assert container["resources"]["limits"] == {
        "nvidia.com/gpu": 2, "cpu": "8", "memory": "128Gi",
    }  # fmt: skip
    assert container["envFrom"] == [{"secretRef": {"name": "iwm-env", "optional": True}}]
    assert job.env["IWM_NODES"] == "1"
    assert job.env["PYTHONPATH"] == "/workspace/src:/workspace"
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert volumes["workspace"]["persistentVolumeClaim"] == {"claimName": "iwm-workspace"}
    assert {mount["mountPath"] for mount in container["volumeMounts"]} == {"/workspace", "/dev/shm"}
    assert pod["tolerations"][0]["key"] == "nvidia.com/gpu"
    assert "nodeSelector" not in pod  # not asked for
    assert pod["securityContext"]["runAsNonRoot"]
    assert "{{" not in json.dumps(job.job_manifest)
    assert "prefect flow-run execute" in job.command


def test_the_kubernetes_worker_makes_the_same_of_it(prefect_server: None) -> None:
    worker = pytest.importorskip("prefect_kubernetes.worker")
    job = asyncio.run(rendered({"gpus": 0}, worker.KubernetesWorkerJobConfiguration))
    _, container = spec_of(job)
    environ = {item["name"]: item.get("value") for item in container["env"]}
    assert environ["PYTHONPATH"] == "/workspace/src:/workspace"
    assert "PREFECT__FLOW_RUN_ID" in environ
    assert container["args"][-1].endswith("execute")
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 0
    assert job.job_manifest["spec"]["backoffLimit"] == 0


@pytest.mark.parametrize("wrong", [{"gpus": "many"}, {"gpus": -1}, {"finished_job_ttl": "a day"}])
def test_a_wrong_variable_is_refused_by_the_server(
    prefect_server: None, wrong: dict[str, Any]
) -> None:
    from prefect.exceptions import PrefectHTTPStatusError
    from prefect.workers.base import BaseJobConfiguration

    with pytest.raises(PrefectHTTPStatusError, match=r"422|409"):
        asyncio.run(rendered(wrong, BaseJobConfiguration))

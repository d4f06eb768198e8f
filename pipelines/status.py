"""`iwm status`: what there is, on one page of the terminal."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from pipelines._stage import INDEX, MODELS, REPORTS, SHARDS, run

RUNS = 5
"""Training runs shown, newest first."""
_PATIENCE_S = 2.0


def collect(service: str, flows: str) -> dict[str, Any]:
    """Everything below, read from the checkout in the current folder, tracker and services.

    Args:
        service: address of the inference service.
        flows: address of Prefect's API.

    Returns:
        ``{"data", "gates", "runs", "champions", "bento", "service", "flows", "errors"}``; a part
        that cannot be read is empty, and ``errors`` says why.
    """
    errors: list[str] = []
    tracked = _tracked(errors)
    return {
        "data": _data(),
        "training": _unfinished(),
        "gates": _gates(),
        **tracked,
        "bento": _read(Path("artifacts/package.json")).get("tag"),
        "service": _service(service),
        "flows": last_flows(flows),
        "errors": errors,
    }


def _read(path: Path) -> dict[str, Any]:
    from iwm.files import read_json

    try:
        value = read_json(path)
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _data() -> dict[str, Any]:
    from pipelines._provenance import dvc_data_revision, git_commit

    shards = _read(SHARDS / "shards.json")
    index = _read(INDEX / "recordings.json")
    splits = [part for counts in index.get("counts", {}).values() for part in counts.values()]
    return {
        "commit": git_commit(),
        "dvc_revision": dvc_data_revision(),
        "indexed": sum(part["frames"] for part in splits) if splits else None,
        "set_aside": sum(index.get("set_aside", {}).values()),
        "shards_revision": shards.get("revision"),
        "recordings": sorted(shards.get("recordings", {})),
        "frames": shards.get("frames", {}),
    }


def _unfinished() -> list[str]:
    """Phases with a checkpoint and no finished training."""
    return sorted(
        folder.name
        for folder in MODELS.glob("[!.]*")
        if (folder / "checkpoints").is_dir() and not (folder / "training.json").is_file()
    )


def _gates() -> dict[str, dict[str, Any]]:
    found = {}
    for path in sorted((REPORTS / "gates").glob("*.json")):
        rules = _read(path).get("rules") or []
        missed = [rule["figure"] for rule in rules if rule.get("verdict") != "pass"]
        found[path.stem] = {"rules": len(rules), "missed": missed}
    return found


def _tracked(errors: list[str]) -> dict[str, Any]:
    """The last runs and the champions."""
    from mlflow.exceptions import MlflowException

    from iwm.config import load_params
    from iwm.errors import IwmError
    from pipelines import _registry
    from pipelines._mlflow import configure, one_line
    from pipelines._tracking import RUN_TAG

    empty: dict[str, Any] = {"runs": [], "champions": {}}
    try:
        params = load_params()
        client = configure()
        experiment = client.get_experiment_by_name(params.register.experiment)
        runs = (
            client.search_runs(
                [experiment.experiment_id], max_results=RUNS, order_by=["start_time DESC"]
            )
            if experiment
            else []
        )
        champions = {}
        for model in client.search_registered_models():
            champion = _registry.version_by_alias(client, model.name, _registry.CHAMPION)
            if champion is not None:
                champions[model.name] = {
                    "version": str(champion.version),
                    "profile": champion.tags.get("profile"),
                    "decision": champion.tags.get("decision"),
                    "before": _registry.champions(client, model.name)[:-1],
                }
    except (IwmError, MlflowException) as error:
        errors.append(one_line(error))
        return empty
    return {
        "runs": [
            {
                "name": run.info.run_name,
                "run_id": run.data.tags.get(RUN_TAG),
                "status": run.info.status,
                "started": datetime.fromtimestamp(run.info.start_time / 1000, UTC).isoformat(
                    timespec="seconds"
                ),
                "minutes": None
                if run.info.end_time is None
                else round((run.info.end_time - run.info.start_time) / 60_000, 1),
            }
            for run in runs
        ],
        "champions": champions,
    }


def _service(url: str) -> dict[str, Any]:
    from iwm.client import SyncIWMClient
    from iwm.errors import IwmError

    try:
        with SyncIWMClient(url, timeout=_PATIENCE_S, retries=0) as client:
            health = client.health()
            card = client.model()
    except IwmError as error:
        return {"url": url, "status": "does not answer", "why": str(error)}
    return {
        "url": url,
        "status": health.get("status"),
        "model": card.name,
        "version": card.version,
    }


def last_flows(url: str) -> dict[str, Any]:
    """Whether Prefect answers at ``url``, and its last flow runs."""
    import httpx

    found: dict[str, Any] = {"url": url, "status": "does not answer", "runs": []}
    try:
        with httpx.Client(timeout=_PATIENCE_S) as client:
            if client.get(f"{url}/health").status_code != 200:
                return found
            found["status"] = "ok"
            names = {flow["id"]: flow["name"] for flow in client.post(f"{url}/flows/filter").json()}
            newest = {"sort": "START_TIME_DESC", "limit": RUNS}
            for run_ in client.post(f"{url}/flow_runs/filter", json=newest).json():
                if run_["start_time"]:
                    found["runs"].append(
                        {
                            "flow": names.get(run_["flow_id"]),
                            "run_id": run_["id"],
                            "state": run_["state_name"],
                            "started": run_["start_time"],
                            "minutes": round(run_["total_run_time"] / 60, 1),
                        }
                    )
    except (httpx.HTTPError, ValueError, KeyError, TypeError):
        return found  # not Prefect, or not this one: what was read so far stands
    return found


def rows(found: dict[str, Any]) -> list[tuple[str, str]]:
    """``(what, how it is)`` of what :func:`collect` found, for people."""
    data, lines = found["data"], []
    frames = sum(data["frames"].values()) if data["frames"] else 0
    lines.append(("code", str(data["commit"] or "not in git")))
    lines.append(("data.dvc", str(data["dvc_revision"] or "names nothing yet; `iwm record`")))
    if data["indexed"] is not None:
        said = f"{data['indexed']:,} frames, {data['set_aside']:,} set aside"
        lines.append(("index", said))
    lines.append(
        (
            "shards",
            f"{frames:,} frames of {', '.join(data['recordings'])} ({data['shards_revision']})"
            if frames
            else "none yet; `dvc repro shard`",
        )
    )
    for phase in found["training"]:
        lines.append((f"train {phase}", "stopped or running; the same command goes on with it"))
    for gate, judged in found["gates"].items():
        missed = judged["missed"]
        verdict = f"FAILED: {', '.join(missed)}" if missed else f"passed, {judged['rules']} rules"
        lines.append((f"gate {gate}", verdict))
    if not found["gates"]:
        lines.append(("gates", "none judged yet; `dvc repro`"))
    if not found["champions"]:
        lines.append(("champion", "none yet; `iwm register PHASE`"))
    for name, champion in found["champions"].items():
        before = f"; before it {', '.join(champion['before'])}" if champion["before"] else ""
        lines.append(
            (f"champion {name}", f"version {champion['version']} ({champion['profile']}){before}")
        )
    for run_ in found["runs"]:
        took = "" if run_["minutes"] is None else f", {run_['minutes']} min"
        named = f", {run_['run_id']}" if run_["run_id"] else ""
        lines.append((f"run {run_['name']}", f"{run_['status']}, {run_['started']}{took}{named}"))
    if not found["runs"]:
        lines.append(("runs", "none yet; `iwm train PHASE`"))
    lines.append(("bento", found["bento"] or "none yet; `iwm package`"))
    service = found["service"]
    named = f", {service['model']} version {service['version']}" if "model" in service else ""
    lines.append(("service", f"{service['url']}: {service['status']}{named}"))
    lines.append(("flows", f"{found['flows']['url']}: {found['flows']['status']}"))
    for run_ in found["flows"]["runs"]:
        said = f"{run_['state']}, {run_['started'][:19]}Z, {run_['minutes']} min, {run_['run_id']}"
        lines.append((f"flow {run_['flow']}", said))
    lines.extend(("error", error) for error in found["errors"])
    return lines


def command(
    url: Annotated[
        str, typer.Option(help="Where the inference service is.")
    ] = "http://127.0.0.1:8001",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Data version, gates, last runs, champions, and whether the services answer."""
    flows = os.environ.get("PREFECT_API_URL", "http://127.0.0.1:4200/api")
    found = collect(url, flows)
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(show_header=False, box=None)
    for what, how in rows(found):
        table.add_row(what, how)
    Console().print(table)


if __name__ == "__main__":
    run(command)

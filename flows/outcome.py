"""What a flow run shows when it is over: its final state and the artifacts on its page."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect.futures import PrefectFuture
from prefect.states import Completed, Failed

from pipelines._stage import REPORTS

if TYPE_CHECKING:
    from prefect.client.schemas.objects import State

_REASON_LIMIT = 2000


def settle(futures: Mapping[str, PrefectFuture[Any]]) -> State[Any]:
    """Wait for every task; the flow's final state, which names each failure and its reason."""
    failures: list[str] = []
    not_run: list[str] = []
    for name, future in futures.items():
        future.wait()
        state = future.state
        if state.is_completed():
            continue
        if state.is_failed() or state.is_crashed():
            failures.append(_why(name, state))
        else:
            not_run.append(name)
    if not failures and not not_run:
        return Completed(message=f"{len(futures)} tasks up to date")
    message = "; ".join(failures or ["stopped"])
    if not_run:
        message += f". Not run, as they depend on it: {', '.join(not_run)}"
    return Failed(message=message)


def _why(name: str, state: State[Any]) -> str:
    from flows.process import InfrastructureError, StageFailed

    try:
        state.result()
    except (StageFailed, InfrastructureError) as error:
        return str(error)[:_REASON_LIMIT]
    except BaseException as error:
        return f"{name} failed: {type(error).__name__}: {error}"[:_REASON_LIMIT]
    return f"{name} failed"


def _read(folder: Path) -> Iterator[tuple[str, Any]]:
    """The JSON files of a folder; one that cannot be read is passed over, as it proves nothing."""
    for path in sorted(folder.glob("*.json")):
        try:
            yield path.stem, json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue


def _figure(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return "" if value is None else str(value)
    return f"{value:.4g}" if isinstance(value, (int, float)) else str(value)


def gate_rows(reports: Path = REPORTS) -> list[dict[str, str]]:
    """One row per rule of every gate report below ``reports/gates``."""
    rows = []
    for phase, report in _read(reports / "gates"):
        for rule in report.get("rules", []):
            rows.append(
                {
                    "gate": f"gate@{phase}",
                    "figure": str(rule.get("figure", "")),
                    "value": _figure(rule.get("value")),
                    "low": _figure(rule.get("low")),
                    "high": _figure(rule.get("high")),
                    "baseline": str(rule.get("baseline") or ""),
                    "baseline value": _figure(rule.get("baseline_value")),
                    "threshold": _figure(rule.get("threshold")),
                    "verdict": str(rule.get("verdict", "")),
                    "missed by": _figure(rule.get("missed_by")),
                    "why": str(rule.get("why") or ""),
                }
            )
    return rows


def metric_rows(reports: Path = REPORTS) -> list[dict[str, str]]:
    """One row per figure of every metrics file below ``reports/metrics``."""
    rows = []
    for phase, metrics in _read(reports / "metrics"):
        for path, figure in _figures(metrics, ""):
            rows.append(
                {
                    "phase": phase,
                    "figure": path,
                    "mean": _figure(figure["mean"]),
                    "low": _figure(figure.get("low")),
                    "high": _figure(figure.get("high")),
                    "n": _figure(figure.get("n")),
                }
            )
    return rows


def _figures(node: Any, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    if not isinstance(node, dict):
        return
    if "mean" in node:
        yield path, node
        return
    for key, value in node.items():
        yield from _figures(value, f"{path}.{key}" if path else key)


def publish(futures: Mapping[str, PrefectFuture[Any]], state: State[Any]) -> None:
    """Put the stages, the gates, the figures and the report on the flow run's page."""
    from prefect.artifacts import create_link_artifact, create_markdown_artifact
    from prefect.artifacts import create_table_artifact as table

    stages = [{"stage": name, "state": future.state.name} for name, future in futures.items()]
    table(table=stages, key="stages", description="Every task of this run")
    if gates := gate_rows():
        table(table=gates, key="gates", description="Figures against thresholds and baselines")
    if metrics := metric_rows():
        table(table=metrics, key="metrics", description="Means with 95 % intervals")
    lines = [f"**{state.name}**: {state.message or ''}"]
    report = (REPORTS / "index.html").resolve()
    if report.exists():
        lines.append(f"Report: `{report}`")
        create_link_artifact(link=report.as_uri(), link_text="report", key="report")
    create_markdown_artifact(markdown="\n\n".join(lines), key="summary")

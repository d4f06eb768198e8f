"""What a run came to: the reports read once, for the page and for the terminal."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iwm.files import read_json
from pipelines._stage import MODELS, REPORTS, SHARDS

if TYPE_CHECKING:
    from iwm.config import Params


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Everything the stages reported; an absent part is an empty mapping."""

    validation: dict[str, Any]
    shards: dict[str, Any]
    training: dict[str, dict[str, Any]] = field(default_factory=dict)
    metrics: dict[str, dict[str, Any]] = field(default_factory=dict)
    gates: dict[str, dict[str, Any]] = field(default_factory=dict)
    registry: dict[str, dict[str, Any]] = field(default_factory=dict)
    package: dict[str, Any] = field(default_factory=dict)
    milestones: dict[str, Any] = field(default_factory=dict)


def _read(path: Path) -> dict[str, Any]:
    return dict(read_json(path)) if path.is_file() else {}


def phases(params: Params) -> list[str]:
    """Everything that the parameters name to be trained, measured or judged, in that order."""
    controls = (f"control-{name}" for name in params.control)
    return list(dict.fromkeys([*params.train, *params.evaluate, *controls, *params.gate]))


def collect(params: Params) -> Summary:
    """Read the reports of the checkout in the current folder.

    Args:
        params: name the phases to look for.
    """
    names = phases(params)
    return Summary(
        validation=_read(REPORTS / "validation.json"),
        shards=_read(SHARDS / "shards.json"),
        training={phase: _read(MODELS / phase / "training.json") for phase in names},
        metrics={phase: _read(REPORTS / "metrics" / f"{phase}.json") for phase in names},
        gates={phase: _read(REPORTS / "gates" / f"{phase}.json") for phase in names},
        registry={phase: _read(Path(f"artifacts/registry/{phase}.json")) for phase in names},
        package=_read(Path("artifacts/package.json")),
        milestones=_read(REPORTS / "milestones.json"),
    )


def number(value: Any) -> str:
    """A figure for people: four significant digits, thousands apart."""
    if value is None:
        return "-"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, int) or (float(value).is_integer() and abs(value) >= 1000):
        return f"{value:,.0f}"
    return f"{value:.4g}"


def interval(rule: dict[str, Any]) -> str:
    """``0.512 [0.49, 0.53]``, or the bare figure where it has no interval."""
    if rule.get("low") is None or rule.get("high") is None:
        return number(rule["value"])
    return f"{number(rule['value'])} [{number(rule['low'])}, {number(rule['high'])}]"


def must_beat(rule: dict[str, Any]) -> str:
    """What the figure is held against, in words."""
    if rule.get("baseline"):
        return f"{rule['baseline']} {number(rule['baseline_value'])}"
    return number(rule.get("threshold"))


def print_summary(elapsed_s: float) -> None:
    """Print the table that ends a demo, and where everything is."""
    from rich.console import Console
    from rich.table import Table

    from iwm.config import load_params

    found = collect(load_params())
    console = Console()
    facts = Table(title="iwm: what came out", title_justify="left", show_header=False)
    for name, value in _facts(found, elapsed_s):
        facts.add_row(name, value)
    console.print(facts)
    for phase, gate in found.gates.items():
        if not gate:
            continue
        verdict = "passed" if gate["passed"] else "FAILED"
        table = Table(title=f"gate {phase}: {verdict}", title_justify="left")
        for heading in ("figure", "value [95 % interval]", "held against", "threshold", "verdict"):
            table.add_column(heading)
        for rule in gate["rules"]:
            table.add_row(
                rule["figure"],
                interval(rule),
                must_beat(rule),
                number(rule.get("threshold")),
                str(rule["verdict"]),
            )
        console.print(table)
    console.print(
        "report    reports/index.html\n"
        "registry  make mlflow-ui             http://127.0.0.1:5000\n"
        "flows     make prefect-up            http://127.0.0.1:4200\n"
        "service   bentoml serve iwm:latest   http://127.0.0.1:8001",
        highlight=False,
    )


def _facts(found: Summary, elapsed_s: float) -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    if found.shards:
        splits = found.shards["frames"]
        parts = ", ".join(f"{name} {count:,}" for name, count in splits.items())
        rows.append(("frames in shards", f"{sum(splits.values()):,} ({parts})"))
        rows.append(("recordings", ", ".join(found.shards.get("recordings", {}))))
    if found.validation:
        checks = found.validation.get("expectations", [])
        held = sum(1 for check in checks if check["success"])
        rows.append(("expectations", f"{held} of {len(checks)} hold"))
    for phase, training in found.training.items():
        if training:
            rows.append(
                (
                    f"training {phase}",
                    f"{number(training.get('steps'))} steps, "
                    f"{number(training.get('samples_per_second'))} samples/s, "
                    f"{number(training.get('parameters'))} parameters",
                )
            )
    for phase, entry in found.registry.items():
        if entry:
            alias = entry.get("alias") or "no alias"
            rows.append((f"registry {phase}", f"{entry['model']} v{entry['version']} ({alias})"))
    if found.milestones:
        capable = f"{found.milestones['percentage']:.1f} % of the capabilities"
        rows.append(("milestones", f"{capable}: reports/milestones.html"))
    if found.package:
        smoke = found.package.get("smoke", {})
        latencies = ", ".join(
            f"/{name} {number(value)} ms" for name, value in sorted(smoke.get("p50_ms", {}).items())
        )
        rows.append(("bento", f"{found.package['tag']}"))
        rows.append(("served and queried, p50", latencies))
    rows.append(("time", f"{elapsed_s / 60:.1f} minutes"))
    return rows

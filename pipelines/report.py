"""Stage `report`: one page over everything, and one for each model, with its pictures inside."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from pipelines._stage import EVALUATION, REPORTS, run

TEMPLATES = Path(__file__).parent / "templates"
PAGES = REPORTS / "models"


def pictures(folder: Path) -> list[tuple[str, str, str]]:
    """``(name, caption, data URI)`` of every PNG in a folder, the most telling first."""
    from iwm.evaluation.captions import caption, place

    return [
        (
            path.stem,
            caption(path.stem),
            "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii"),
        )
        for path in sorted(folder.glob("*.png"), key=lambda path: place(path.stem))
    ]


def flatten(metrics: dict[str, Any], prefix: str = "") -> list[tuple[str, dict[str, Any]]]:
    """Every figure of a metrics report as ``(dotted name, {mean, low, high, n})``."""
    rows: list[tuple[str, dict[str, Any]]] = []
    for key, value in metrics.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and "mean" in value:
            rows.append((name, value))
        elif isinstance(value, dict):
            rows.extend(flatten(value, f"{name}."))
    return rows


def sections(metrics: dict[str, Any]) -> dict[str, list[tuple[str, dict[str, Any]]]]:
    """The figures of a metrics report by their first name, in the report's order."""
    found: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    for name, figure in flatten(metrics):
        head, _, rest = name.partition(".")
        found.setdefault(head, []).append((rest or head, figure))
    return found


def command() -> None:
    """Write reports/index.html, and reports/models/PHASE.html for each trained model."""
    import typer
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    from iwm.config import load_params
    from iwm.files import atomic_directory, write_text
    from pipelines._summary import collect, interval, must_beat, number

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined
    )
    environment.filters.update(number=number, interval=interval, must_beat=must_beat)
    params = load_params()
    summary = collect(params)
    measured = {phase: metrics for phase, metrics in summary.metrics.items() if metrics}
    with atomic_directory(PAGES) as folder:
        for phase, metrics in measured.items():
            page = environment.get_template("model.html.j2").render(
                profile=params.profile,
                phase=phase,
                metrics=metrics,
                training=summary.training.get(phase, {}),
                gate=summary.gates.get(phase, {}),
                sections=sections(metrics),
                pictures=pictures(EVALUATION / phase),
            )
            write_text(folder / f"{phase}.html", page)
    index = environment.get_template("report.html.j2").render(
        profile=params.profile, summary=summary, pages=list(measured)
    )
    write_text(REPORTS / "index.html", index)
    typer.echo(f"{REPORTS / 'index.html'}, and {len(measured)} pages under {PAGES}")


if __name__ == "__main__":
    run(command)

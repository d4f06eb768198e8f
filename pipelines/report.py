"""Stage `report`: one self-contained page over validation, metrics, gates, registry and Bento."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from pipelines._stage import EVALUATION, REPORTS, run

TEMPLATES = Path(__file__).parent / "templates"


def pictures(folder: Path) -> list[tuple[str, str]]:
    """``(caption, data URI)`` of every PNG in a folder, in order of name."""
    return [
        (
            path.stem.replace("_", " "),
            "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii"),
        )
        for path in sorted(folder.glob("*.png"))
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


def command() -> None:
    """Write reports/index.html."""
    import typer
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    from iwm.config import load_params
    from iwm.files import write_text
    from pipelines._summary import collect, interval, must_beat, number

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined
    )
    environment.filters.update(number=number, interval=interval, must_beat=must_beat)
    summary = collect()
    page = environment.get_template("report.html.j2").render(
        profile=load_params().profile,
        summary=summary,
        figures={phase: flatten(metrics) for phase, metrics in summary.metrics.items()},
        pictures={phase: pictures(EVALUATION / phase) for phase in summary.metrics},
    )
    write_text(REPORTS / "index.html", page)
    typer.echo(f"{REPORTS / 'index.html'}")


if __name__ == "__main__":
    run(command)

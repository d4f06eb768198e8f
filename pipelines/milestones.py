"""Stage `milestones`: what the generative models can do, computed from their gate reports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipelines._stage import EVALUATION, MODELS, REPORTS, run

TEMPLATES = Path(__file__).parent / "templates"
REPORT, PAGE = REPORTS / "milestones.json", REPORTS / "milestones.html"


def command() -> None:
    """Write reports/milestones.json and reports/milestones.html from the gate reports."""
    import typer
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    from iwm.config import load_params
    from iwm.evaluation.milestones import DYNAMICS, TOKENIZER, capabilities, milestones
    from iwm.files import write_json, write_text
    from pipelines._summary import interval, must_beat, number
    from pipelines.report import pictures

    params = load_params()
    names = (TOKENIZER, DYNAMICS)
    gates = {name: gate for name in names if (gate := _gate(name))}
    metrics = {name: _read(REPORTS / "metrics" / f"{name}.json") for name in names}
    report = {
        "profile": params.profile,
        **capabilities(gates),
        "milestones": milestones(gates, metrics, _full_gate()),
        "weights_sha256": {name: gate.get("weights_sha256") for name, gate in gates.items()},
        "data_revision": {name: gate.get("data_revision") for name, gate in gates.items()},
    }
    write_json(REPORT, report)
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined
    )
    environment.filters.update(number=number, interval=interval, must_beat=must_beat)
    page = environment.get_template("milestones.html.j2").render(
        report=report,
        notes=metrics[TOKENIZER].get("notes", {}),
        pictures={name: pictures(EVALUATION / name) for name in names},
    )
    write_text(PAGE, page)
    for name, held in report["capabilities"].items():
        typer.echo(f"{name}: {'yes' if held else 'no'}, {report['evidence'][name]}")
    typer.echo(f"capabilities: {report['percentage']:.1f} %; {PAGE}")


def _read(path: Path) -> dict[str, Any]:
    from iwm.errors import DataError
    from iwm.files import read_json

    if not path.is_file():
        return {}
    try:
        return dict(read_json(path))
    except ValueError as error:
        raise DataError(f"{path}: not JSON: {error}") from None


def _gate(name: str) -> dict[str, Any]:
    """A gate's report, if it speaks of the weights that are there now."""
    from pipelines._registry import WEIGHTS_FILE, sha256

    report = _read(REPORTS / "gates" / f"{name}.json")
    weights = MODELS / name / WEIGHTS_FILE
    current = weights.is_file() and report.get("weights_sha256") == sha256(weights)
    return report if current else {}


def _full_gate() -> dict[str, Any]:
    """The rules of the full profile: the defaults of profiles.yaml."""
    from iwm.config import PROFILES_FILE, Params, resolve_profile
    from iwm.settings import parse

    return parse(Params, resolve_profile("gpu", environ={}), str(PROFILES_FILE)).gate


if __name__ == "__main__":
    run(command)

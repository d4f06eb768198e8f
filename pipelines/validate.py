"""`iwm validate`: Great Expectations over the index; an error stops, a warning reports."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipelines._stage import INDEX, REPORTS, quiet, run

VALIDATION = Path("artifacts/validation")


def validate(
    index: Annotated[Path, typer.Option(help="Folder of the index.")] = INDEX,
    out: Annotated[Path, typer.Option(help="Verdict and action distribution.")] = VALIDATION,
    reports: Annotated[Path, typer.Option(help="Where validation.json and .html go.")] = REPORTS,
) -> None:
    """Hold the index against every expectation; an error stops, a warning reports."""
    quiet()
    from iwm.config import load_params
    from iwm.data.expectations import validate_index
    from iwm.data.expectations.page import render_page
    from iwm.errors import DataError
    from iwm.files import write_json, write_text

    previous = _previous(out / "actions.json")
    # From here on the data has not passed, until it has.
    (out / "passed.json").unlink(missing_ok=True)
    report = validate_index(index, load_params().validate, previous)
    page = reports / "validation.html"
    write_json(reports / "validation.json", report.to_json())
    write_text(page, render_page(report))
    for finding in report.warned:
        typer.echo(f"warning: {finding.line()}", err=True)
    if not report.passed:
        failures = "; ".join(finding.line() for finding in report.failed)
        raise DataError(f"validation failed: {failures}; see {page}")
    write_json(out / "actions.json", {"version": 1, "counts": report.actions})
    write_json(
        out / "passed.json",
        {
            "passed": True,
            "expectations": len(report.findings),
            "warnings": [finding.name for finding in report.warned],
        },
    )
    typer.echo(
        f"{len(report.findings)} expectations, no errors, {len(report.warned)} warnings: {page}"
    )


def _previous(path: Path) -> dict[str, int] | None:
    """The action counts of the data version that passed last; ``None`` at first."""
    from iwm.errors import DataError
    from iwm.files import read_json

    if not path.exists():
        return None
    try:
        counts = read_json(path)["counts"]
        return {str(name): int(count) for name, count in counts.items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(f"{path}: not an action distribution: {error!r}; delete it") from None


if __name__ == "__main__":
    run(validate)

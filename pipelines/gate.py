"""Stage `gate`: hold a phase's figures against its rules; a miss stops what depends on it."""

from __future__ import annotations

from typing import Annotated

import typer

from pipelines._stage import REPORTS, run


def gate(
    phase: Annotated[str, typer.Argument(help="an entry under `gate` in params.yaml")],
) -> None:
    """Judge PHASE's metrics; write reports/gates/PHASE.json; exit 1 if a rule fails."""
    from iwm.config import load_params
    from iwm.errors import ConfigError, DataError, GateFailed
    from iwm.evaluation.gates import evaluate_gate, failure
    from iwm.files import read_json, write_json

    params = load_params()
    if phase not in params.gate:
        raise ConfigError(f"gate.{phase}: not in params.yaml; it has {', '.join(params.gate)}")
    path = REPORTS / "metrics" / f"{phase}.json"
    try:
        metrics = read_json(path)
    except FileNotFoundError:
        raise DataError(f"{path}: not found; run `iwm evaluate {phase}` first") from None
    except ValueError as error:
        raise DataError(f"{path}: not JSON: {error}") from None
    report = evaluate_gate(phase, params.gate[phase], metrics)
    write_json(REPORTS / "gates" / f"{phase}.json", report)
    if not report["passed"]:
        raise GateFailed(failure(report))
    typer.echo(f"gate {phase} passed: {len(report['rules'])} rules")
    for rule in report["rules"]:
        typer.echo(
            f"  {rule['figure']} {rule['value']:.3f} [{rule['low']:.3f}, {rule['high']:.3f}] "
            f"{rule['comparison']} {rule['threshold']:.3f}"
        )


if __name__ == "__main__":
    run(gate)

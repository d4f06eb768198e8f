"""`iwm train-strong`: longer runs that make the ready-made models, apart from your own data.

Each is an ordinary run of the graph in a profile of its own (``strong-<game>``), up to the gates
of the phases that it names, in a working copy of this checkout that is kept: a run that was
stopped, a kill included, goes on where it was. A gate that is missed does not keep the other
phases from being made; every gate's figures are printed.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from pipelines._stage import run

EXPORTED = "action"
"""The phase whose model ships in the package."""
KEEP = Path("artifacts/strong")


@dataclass(frozen=True)
class Strong:
    """One longer run: its profile, the phases it makes up to their gates, in this order, and the
    name of the ready-made model that comes of it."""

    profile: str
    model: str
    phases: tuple[str, ...] = (EXPORTED,)


RUNS = {
    "doom": Strong("strong-doom", "doom-tiny", ("action", "vrnn", "vqvae", "vqvae-dynamics")),
    "freeway": Strong("strong-freeway", "freeway-tiny"),
    "minigrid": Strong("strong-minigrid", "minigrid-tiny"),
}


def command(
    games: Annotated[
        list[str] | None,
        typer.Argument(help=f"Which of {', '.join(RUNS)}; all when none is named."),
    ] = None,
    keep: Annotated[
        Path, typer.Option(help="Where the working copies lie, one folder a game.")
    ] = KEEP,
    update: Annotated[
        bool,
        typer.Option(
            "--update", help="Bring an earlier working copy to this checkout's code and profile."
        ),
    ] = False,
    export: Annotated[
        Path | None, typer.Option(help="Pack what passed into this folder, as `iwm export` does.")
    ] = None,
    phase: Annotated[
        list[str] | None,
        typer.Option(help="Only this phase of a run, and what it needs; may be repeated."),
    ] = None,
) -> None:
    """Record, train and gate the models of GAMES in their strong profiles."""
    from iwm.errors import ConfigError, GateFailed

    chosen = games or list(RUNS)
    for name in chosen:
        if name not in RUNS:
            raise ConfigError(f"train-strong: no run {name!r}; there are {', '.join(RUNS)}")
        for wanted in phase or ():
            if wanted not in RUNS[name].phases:
                there = ", ".join(RUNS[name].phases)
                raise ConfigError(f"train-strong {name}: no phase {wanted!r}; there are {there}")
    checkout = Path.cwd()
    copies, target = keep.resolve(), export.resolve() if export else None
    missed = []
    for name in chosen:
        phases = tuple(item for item in RUNS[name].phases if not phase or item in phase)
        try:
            missed += _run(name, copies / name, phases, update=update, export=target)
        finally:
            os.chdir(checkout)
    if missed:
        raise GateFailed(f"train-strong: no gate passed for {', '.join(missed)}; see above")


def _run(
    name: str, folder: Path, phases: tuple[str, ...], *, update: bool, export: Path | None
) -> list[str]:
    """One run, in its copy; returns the phases that did not pass, as ``<run>: <phase>``."""
    from iwm.errors import IwmError
    from pipelines import _copy, _repro

    strong, started, began = RUNS[name], time.monotonic(), time.time()
    _prepare(folder, strong.profile, update=update)
    _copy.work_in(folder)
    _repro.ensure_data(folder)
    os.chdir(folder)
    missed = []
    for phase in phases:
        try:
            _repro.repro([f"gate@{phase}"], cwd=folder)
        except IwmError:  # what failed has said why; the other phases do not hang on it
            missed.append(phase)
    typer.echo(f"train-strong {name}: {(time.monotonic() - started) / 60:.1f} minutes, in {folder}")
    for phase in phases:
        typer.echo(f"  {phase}: {'NOT PASSED' if phase in missed else 'passed'}")
        # An earlier run's report says nothing of a stage that now failed before its gate.
        for line in figures(phase, since=began if phase in missed else 0.0):
            typer.echo(f"    {line}")
    if export is not None and EXPORTED not in missed:
        from pipelines.export import export_model

        place = export_model(EXPORTED, export / strong.model)
        typer.echo(f"  packed into {place}")
    return [f"{name}: {phase}" for phase in missed]


def _prepare(folder: Path, profile: str, *, update: bool) -> None:
    """Make the copy if it is not there; whole or not at all.

    Raises:
        IwmError: ``folder`` holds something else.
    """
    from iwm.config import PARAMS_FILE, read_yaml
    from iwm.errors import IwmError
    from iwm.files import atomic_directory
    from pipelines import _copy

    if not folder.exists():
        with atomic_directory(folder) as temporary:
            _copy.copy_checkout(temporary)
            _copy.begin(temporary, profile)
        return
    params = folder / PARAMS_FILE
    if not params.is_file() or read_yaml(params).get("profile") != profile:
        raise IwmError(f"{folder}: there, but no working copy of the profile {profile}")
    if update:
        _copy.update_copy(folder)
        _copy.choose_profile(folder, profile)
        typer.echo(f"{folder}: brought to this checkout's code and profile")
    else:
        typer.echo(f"{folder}: going on with its own code and profile (--update takes today's)")


def figures(phase: str, since: float = 0.0) -> list[str]:
    """A gate's figures of the checkout in the current folder, a line each; none where there is
    no report of ``since`` (seconds since 1970) or later."""
    from iwm.files import read_json
    from pipelines._stage import REPORTS
    from pipelines._summary import interval, must_beat

    report = REPORTS / "gates" / f"{phase}.json"
    if not report.is_file() or report.stat().st_mtime < since:
        return []
    return [
        f"{rule['figure']} {interval(rule)} against {must_beat(rule)}: {rule['verdict']}"
        for rule in read_json(report)["rules"]
    ]


if __name__ == "__main__":
    run(command)

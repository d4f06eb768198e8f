"""`iwm train-strong`: longer runs that make the ready-made models, apart from your own data.

Each is an ordinary run of the graph in a profile of its own (``strong-<game>``), in a working
copy of this checkout that is kept: a run that was stopped, a kill included, goes on where it
was.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from pipelines._stage import run

PHASE = "action"
KEEP = Path("artifacts/strong")


@dataclass(frozen=True)
class Strong:
    """One longer run: its profile, and the name of the ready-made model that comes of it."""

    profile: str
    model: str


RUNS = {
    "doom": Strong("strong-doom", "doom-tiny"),
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
) -> None:
    """Record, train and gate the action model of GAMES in their strong profiles."""
    from iwm.errors import ConfigError

    chosen = games or list(RUNS)
    for name in chosen:
        if name not in RUNS:
            raise ConfigError(f"train-strong: no run {name!r}; there are {', '.join(RUNS)}")
    checkout = Path.cwd()
    copies, target = keep.resolve(), export.resolve() if export else None
    for name in chosen:
        try:
            _run(name, copies / name, update=update, export=target)
        finally:
            os.chdir(checkout)


def _run(name: str, folder: Path, *, update: bool, export: Path | None) -> None:
    """One run, in its copy."""
    from pipelines import _copy, _repro

    strong, started = RUNS[name], time.monotonic()
    _prepare(folder, strong.profile, update=update)
    _copy.work_in(folder)
    _repro.ensure_data(folder)
    _repro.repro([f"gate@{PHASE}"], cwd=folder)
    os.chdir(folder)
    typer.echo(f"train-strong {name}: {(time.monotonic() - started) / 60:.1f} minutes, in {folder}")
    for line in figures():
        typer.echo(f"  {line}")
    if export is not None:
        from pipelines.export import export_model

        place = export_model(PHASE, export / strong.model)
        typer.echo(f"  packed into {place}")


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


def figures() -> list[str]:
    """The gate's figures of the checkout in the current folder, a line each."""
    from iwm.files import read_json
    from pipelines._stage import REPORTS
    from pipelines._summary import interval, must_beat

    gate = read_json(REPORTS / "gates" / f"{PHASE}.json")
    return [
        f"{rule['figure']} {interval(rule)} against {must_beat(rule)}: {rule['verdict']}"
        for rule in gate["rules"]
    ]


if __name__ == "__main__":
    run(command)

"""`iwm migrate`: bring what an earlier version of iwm wrote up to date."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import typer

from pipelines._stage import DATA, INDEX, MODELS, run

Step = Callable[[Path, bool], int | None]
"""``(folder, write)`` -> the version it had, ``None`` when it is up to date."""


def found(path: Path) -> Iterator[tuple[str, Path]]:
    """``(kind, folder)`` of everything at or below ``path`` that has a migration."""
    from iwm.gameplay.index import RECORDINGS_FILE
    from iwm.gameplay.schema import RECORDING_FILE
    from iwm.training.checkpoint import STATE_FILE

    kinds = {RECORDING_FILE: "recording", RECORDINGS_FILE: "index", STATE_FILE: "checkpoint"}
    for file in sorted(path.rglob("*.json")):
        kind = kinds.get(file.name)
        partial = any(part.startswith(".") for part in file.relative_to(path).parts)
        if kind is not None and not partial:
            yield kind, file.parent


def _steps(keep_training: bool) -> dict[str, tuple[int, Step]]:
    """Kind -> the version that this software writes, and what brings a folder up to it."""
    from iwm.gameplay.index import INDEX as INDEX_FORMAT
    from iwm.gameplay.migration import migrate_index, migrate_recording
    from iwm.gameplay.schema import RECORDING
    from iwm.training.checkpoint import FORMAT, migrate_checkpoint
    from iwm.training.trainer import code_revision

    code = code_revision() if keep_training else None
    return {
        "recording": (RECORDING.current, lambda path, write: migrate_recording(path, write=write)),
        "index": (INDEX_FORMAT.current, lambda path, write: migrate_index(path, write=write)),
        "checkpoint": (
            FORMAT.current,
            lambda path, write: migrate_checkpoint(path, code=code, write=write),
        ),
    }


def command(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Recordings, an index, checkpoints, or folders of them; default: the index and "
            "the checkpoints of this checkout. Recordings are sealed only when they are named.",
        ),
    ] = None,
    apply: Annotated[
        bool, typer.Option("--apply", help="Do it; otherwise only say what would be done.")
    ] = False,
    keep_training: Annotated[
        bool,
        typer.Option(
            "--keep-training",
            help="Let trainings that were stopped go on with this version's code, too.",
        ),
    ] = False,
) -> None:
    """Bring what an earlier version wrote up to date; frames, rows and tensors stay untouched.

    Without --apply nothing is written. Each file is replaced at once or not at all, and running
    it again goes on where it was stopped.
    """
    from iwm.errors import DataError, IwmError

    chosen = paths or [path for path in (INDEX, MODELS) if path.exists()]
    for path in chosen:
        if not path.exists():
            raise DataError(f"{path}: not found")
    steps = _steps(keep_training)
    failed: list[str] = []
    counted = {"done": 0, "up to date": 0}
    sealed = False
    for path in chosen:
        for kind, folder in found(path):
            current, step = steps[kind]
            try:
                version = step(folder, apply)
            except IwmError as error:
                failed.append(str(error))
                continue
            if version is None:
                counted["up to date"] += 1
                continue
            counted["done"] += 1
            sealed |= kind == "recording" and folder.resolve().is_relative_to(DATA.resolve())
            what = f"version {version} -> {current}" if version != current else "goes on"
            typer.echo(f"{folder}: {kind}, {what}")
    verb = "brought up to date" if apply else "to be brought up to date (--apply does it)"
    typer.echo(f"{counted['done']} {verb}, {counted['up to date']} up to date already")
    if sealed and apply and Path("data.dvc").exists():
        typer.echo("data/ changed: `dvc add data` names this version of it")
    if failed:
        raise DataError("; ".join(failed))


if __name__ == "__main__":
    run(command)

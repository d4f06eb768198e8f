"""`iwm smoke`: the whole graph on the procedural world, apart from your own data.

Everything happens in a temporary clone of this checkout, uncommitted changes
included, with its own tracking store and Bento store. Your ``data/``,
``artifacts/`` and registry are not touched.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer

from pipelines._stage import run


def command(
    keep: Annotated[
        Path | None, typer.Option(help="Work here and leave it; must be empty or absent.")
    ] = None,
) -> None:
    """Run the whole graph in the smoke profile, in a temporary clone."""
    from iwm.errors import IwmError
    from pipelines import _copy, _repro
    from pipelines._summary import print_summary

    started = time.monotonic()
    if keep is not None and keep.exists() and any(keep.iterdir()):
        raise IwmError(f"{keep}: not empty")
    folder = (keep or Path(tempfile.mkdtemp(prefix="iwm-smoke-"))).resolve()
    try:
        _copy.copy_checkout(folder)
        _copy.work_in(folder)
        _copy.begin(folder, "smoke")
        _repro.ensure_data(folder)
        _repro.repro(cwd=folder)
        lock = (folder / "dvc.lock").read_bytes()
        again = _repro.repro(cwd=folder)
        if (folder / "dvc.lock").read_bytes() != lock:
            raise IwmError("a second `dvc repro` ran stages again; see the lines above")
        os.chdir(folder)
        print_summary(elapsed_s=time.monotonic() - started)
        typer.echo(f"a second `dvc repro` found nothing to do in {again:.1f} s")
    finally:
        if keep is None:
            os.chdir("/")
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    run(command)

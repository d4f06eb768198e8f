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


def copy_checkout(target: Path) -> None:
    """Copy what git tracks, and what it would track, to ``target``, with a history of one commit.

    Raises:
        IwmError: this folder is not a git checkout.
    """
    import subprocess

    from iwm.errors import IwmError

    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        capture_output=True,
        check=False,
    )
    if listed.returncode:
        raise IwmError("run this in the repository root: " + listed.stderr.decode().strip())
    for raw in filter(None, listed.stdout.split(b"\0")):
        source = Path(os.fsdecode(raw))
        if source.is_file():
            (target / source).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target / source)
    identity = ["-c", "user.name=smoke", "-c", "user.email=smoke@localhost"]
    for arguments in (
        ["init", "--quiet"],
        ["add", "--all"],
        [*identity, "commit", "--quiet", "--no-verify", "-m", "smoke"],
    ):
        subprocess.run(["git", *arguments], cwd=target, check=True)


def command(
    keep: Annotated[
        Path | None, typer.Option(help="Work here and leave it; must be empty or absent.")
    ] = None,
) -> None:
    """Run the whole graph in the smoke profile, in a temporary clone."""
    from iwm.errors import IwmError
    from pipelines import _repro
    from pipelines._summary import print_summary

    started = time.monotonic()
    if keep is not None and keep.exists() and any(keep.iterdir()):
        raise IwmError(f"{keep}: not empty")
    folder = (keep or Path(tempfile.mkdtemp(prefix="iwm-smoke-"))).resolve()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        copy_checkout(folder)
        # Modules must come from the clone, and its stores stay inside it.
        os.environ["PYTHONPATH"] = f"{folder / 'src'}{os.pathsep}{folder}"
        os.environ["BENTOML_HOME"] = str(folder / ".bentoml")
        os.environ.pop("MLFLOW_TRACKING_URI", None)
        # data.dvc names the recordings of the cpu profile; this clone records its own.
        (folder / "data.dvc").unlink(missing_ok=True)
        (folder / "dvc.lock").unlink(missing_ok=True)
        _repro.module("pipelines.profile", "use", "smoke", cwd=folder)
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

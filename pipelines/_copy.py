"""A working copy of this checkout, for runs that must not touch the user's own data.

A copy has its own ``data/``, ``artifacts/``, DVC cache, tracking store and Bento store.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from iwm.errors import IwmError


def _git(*arguments: str) -> bytes:
    done = subprocess.run(["git", *arguments], capture_output=True, check=False)
    if done.returncode:
        raise IwmError("run this in the repository root: " + done.stderr.decode().strip())
    return done.stdout


def copy_checkout(target: Path) -> None:
    """Clone this checkout into ``target`` (empty or absent), uncommitted changes included.

    Raises:
        IwmError: this folder is not a git checkout.
    """
    _git("clone", "--quiet", "--no-tags", "--", os.fspath(Path.cwd()), os.fspath(target))
    update_copy(target)


def update_copy(target: Path) -> None:
    """Bring the files of a copy to what this checkout holds now.

    What git does not track in the copy, its data and artifacts above all, stays.

    Raises:
        IwmError: this folder is not a git checkout.
    """
    listed = _git("ls-files", "-z", "--cached", "--others", "--exclude-standard")
    here = {Path(os.fsdecode(raw)) for raw in filter(None, listed.split(b"\0"))}
    # These name the user's recordings, runs and profile; a copy has its own.
    own = {Path("data.dvc"), Path("dvc.lock"), Path("params.yaml")}
    for source in sorted(here - own):
        if source.is_file():
            place = target / source
            place.parent.mkdir(parents=True, exist_ok=True)
            if not place.is_file() or place.read_bytes() != source.read_bytes():
                shutil.copy2(source, place)
        else:
            (target / source).unlink(missing_ok=True)


def work_in(folder: Path) -> None:
    """Let the stages started from here use the copy's modules and stores."""
    os.environ["PYTHONPATH"] = f"{folder / 'src'}{os.pathsep}{folder}"
    os.environ["BENTOML_HOME"] = str(folder / ".bentoml")
    os.environ.pop("MLFLOW_TRACKING_URI", None)


def begin(folder: Path, profile: str) -> None:
    """Choose a fresh copy's profile; it records its own data."""
    for name in ("data.dvc", "dvc.lock"):
        (folder / name).unlink(missing_ok=True)
    choose_profile(folder, profile)


def choose_profile(folder: Path, profile: str) -> None:
    """Write a profile of the copy's own ``profiles.yaml`` to its ``params.yaml``."""
    from pipelines import _repro

    work_in(folder)
    _repro.module("pipelines.profile", "use", profile, cwd=folder)

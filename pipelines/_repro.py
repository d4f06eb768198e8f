"""Running the DVC graph from a command: data first, then `dvc repro`."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from iwm.errors import IwmError
from pipelines._mend import mend
from pipelines._stage import DATA, quiet

DATA_DVC = Path("data.dvc")


def module(*arguments: str, cwd: Path | None = None) -> None:
    """Run ``python -m <arguments>`` in this environment, its output passing through.

    Raises:
        IwmError: it ended with another code than 0 (it has printed why).
    """
    quiet()
    # dvc.yaml says `python`: this environment's, also where it is not activated.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    result = subprocess.run(
        [sys.executable, "-m", *arguments], cwd=cwd, check=False, env={**os.environ, "PATH": path}
    )
    if result.returncode:
        raise IwmError(f"`{' '.join(arguments)}` ended with code {result.returncode}")


def data_is_empty(root: Path = Path()) -> bool:
    """Whether there is nothing recorded or imported yet, or not all that was planned.

    The latter after a recorder was killed: the next one makes the rest.
    """
    from iwm.gameplay.record import UNFINISHED

    folder = root / DATA
    if not folder.is_dir() or (folder / UNFINISHED).exists():
        return True
    return not any(not entry.name.startswith(".") for entry in folder.iterdir())


def track_data() -> str:
    """Let DVC keep ``data/`` and ``data.dvc`` name it; says what that changed.

    Outside a DVC checkout nothing is done, and the answer is empty.
    """
    if not Path(".dvc").is_dir():
        return ""
    tell_mended(Path())
    before = DATA_DVC.read_bytes() if DATA_DVC.exists() else None
    module("dvc", "add", "--quiet", str(DATA))
    if before is None:
        return f"{DATA_DVC} names the data now"
    if DATA_DVC.read_bytes() == before:
        return f"these are the bytes that {DATA_DVC} names"
    return f"{DATA_DVC} changed: this is another version of the data"


def ensure_data(root: Path | None = None) -> None:
    """Record when ``data/`` is empty, and make sure that ``data.dvc`` names what is there.

    DVC cannot own this step: an output below ``data/`` overlaps with ``data.dvc``, and
    ``dvc repro`` refuses to start while the source it names is missing.
    """
    here = root or Path()
    tell_mended(here)
    if data_is_empty(here):
        module("pipelines.record", cwd=root)
    if not (here / DATA_DVC).exists():
        module("dvc", "add", "--quiet", str(DATA), cwd=root)


def tell_mended(root: Path) -> None:
    """Mend what kills did to DVC's files, and say so."""
    for line in mend(root):
        print(line, file=sys.stderr)


def repro(targets: Iterable[str] = (), cwd: Path | None = None) -> float:
    """``dvc repro``; returns the seconds it took."""
    tell_mended(cwd or Path())
    started = time.monotonic()
    module("dvc", "repro", *targets, cwd=cwd)
    return time.monotonic() - started

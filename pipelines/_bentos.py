"""BentoML's store: a Bento enters it whole, once, and only after it has answered.

BentoML itself copies a Bento file by file under its final name, where ``iwm:latest`` and
``bentoml list`` find it at once.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

from iwm.files import TEMPORARY_PREFIX, temporary_beside, write_text


def home() -> Path:
    """Where BentoML keeps things."""
    return Path(os.environ.get("BENTOML_HOME") or "~/bentoml").expanduser()


def place(tag: str, inside: Path) -> Path:
    """The folder of ``name:version`` below a BentoML home."""
    return inside / "bentos" / Path(*tag.split(":"))


def version_of(folder: Path) -> str:
    """A version that tells a Bento's content: the same files make the same Bento."""
    digest = hashlib.sha256()
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(f"{file.relative_to(folder).as_posix()}\n{file.stat().st_size}\n".encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def keep(tag: str, built: Path) -> None:
    """Put a Bento of another home, ``built``, into the store, and name it its latest.

    One that the store holds already stays as it is.
    """
    target = place(tag, home())
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.is_dir():
        # Not beside it: BentoML takes every folder there for a version.
        temporary = temporary_beside(home() / "bento")
        for left in home().glob(f"{TEMPORARY_PREFIX}*-bento"):
            shutil.rmtree(left)
        shutil.copytree(place(tag, built), temporary)
        temporary.rename(target)
    write_text(target.parent / "latest", target.name)

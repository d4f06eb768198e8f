"""Where a result comes from: the git commit and DVC's name of the data."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any


def git_commit() -> str | None:
    """The checked-out commit, ``+dirty`` when tracked files differ; ``None`` outside git."""
    try:
        head = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True
        ).stdout.strip()
        changed = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no", "--", "src", "pipelines"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{head}+dirty" if changed else head


def dvc_data_revision(path: Path = Path("data.dvc")) -> str | None:
    """The md5 by which ``data.dvc`` names the recordings; ``None`` without that file."""
    import yaml

    try:
        outs: Any = yaml.safe_load(path.read_text(encoding="utf-8"))["outs"]
        return str(outs[0]["md5"])
    except (OSError, yaml.YAMLError, KeyError, IndexError, TypeError):
        return None

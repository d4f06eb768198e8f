"""The graph of this checkout, cut to two small models: every kind of stage in about a minute."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

from iwm.config import resolve_profile, write_params
from pipelines import _copy
from pipelines._stage import QUIET_ENVIRONMENT

ROOT = Path(__file__).parents[1]
PHASES = ("core", "embodied")
STAGES = (
    "ingest",
    "validate",
    "shard",
    "branch",
    "trajectories@particles",
    *(
        f"{stage}@{phase}"
        for phase in PHASES
        for stage in ("train", "evaluate", "gate", "register")
    ),
    "package",
)

_SPRITES = {
    "source": "procedural",
    "game": "sprites",
    "frame_skip": 1,
    "width": 64,
    "height": 64,
    "max_episode_steps": 30,
}
_SPLIT = {"val": 0.2, "test": 0.3, "salt": "iwm"}
_OVERRIDES: dict[str, Any] = {
    # Two recordings: a kill may come between them.
    "record.plans": [
        {"name": "long", "frames": 480, **_SPRITES},
        {"name": "short", "frames": 240, **_SPRITES},
    ],
    "ingest.split": _SPLIT,
    "shard.frames_per_shard": 128,
    "branch.plans": [{"name": "short", "states": 12}],
    "trajectories.particles": {
        "source": "particles",
        "particles": {"episodes": 60, "steps": 60},
        "split": _SPLIT,
    },
    "train.core.epochs": 5,
    "train.core.batch_size": 16,
    "train.core.checkpoint_every": 5,
    "train.core.log_every": 5,
    "train.embodied.epochs": 60,
    "train.embodied.batch_size": 8,
    "train.embodied.max_steps": 80,
    "train.embodied.checkpoint_every": 10,
    "train.embodied.log_every": 10,
    "evaluate.core.bootstrap": 100,
    "evaluate.core.bank": 64,
    "evaluate.core.rank_images": 128,
    "evaluate.embodied.bootstrap": 100,
    # That a model was measured is enough here; how well it learned is other tests' matter.
    "gate.core": [{"figure": "collapse.mean_std", "above": 0.0}],
    "gate.embodied": [{"figure": "accuracy.model", "above": 0.0}],
    "package": {"name": "iwm", "phase": "core", "also": ["embodied"], "smoke_requests": 2},
}


def make(folder: Path) -> None:
    """A working copy of this checkout in ``folder`` with the small graph and its settings.

    The current folder must be this checkout.
    """
    _copy.copy_checkout(folder)
    for name in ("data.dvc", "dvc.lock"):
        (folder / name).unlink(missing_ok=True)
    graph = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    (folder / "dvc.yaml").write_text(
        yaml.safe_dump({"stages": _cut(graph)}, sort_keys=False), encoding="utf-8"
    )
    write_params(
        resolve_profile("smoke", overrides=_OVERRIDES, profiles=ROOT / "profiles.yaml", environ={}),
        folder / "params.yaml",
    )


def _cut(graph: dict[str, Any]) -> dict[str, Any]:
    """The stages of ``STAGES`` alone."""
    kept: dict[str, Any] = {}
    for name, stage in graph.items():
        wanted = [full.partition("@")[2] for full in STAGES if full.split("@")[0] == name]
        if not wanted:
            continue
        if "foreach" in stage:
            stage["foreach"] = {key: stage["foreach"][key] for key in wanted}
        elif "matrix" in stage:
            stage["matrix"] = {"phase": wanted}
        kept[name] = stage
    registered = {f"artifacts/registry/{phase}.json" for phase in PHASES}
    package = kept["package"]
    package["deps"] = [
        item
        for item in package["deps"]
        if not item.startswith("artifacts/registry/") or item in registered
    ]
    return kept


def environment(folder: Path) -> dict[str, str]:
    """What programs started in the copy are told: its own modules and stores."""
    mine = {name: value for name, value in os.environ.items() if not name.startswith("IWM_")}
    mine.pop("MLFLOW_TRACKING_URI", None)
    return {
        **mine,
        **QUIET_ENVIRONMENT,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": f"{folder / 'src'}{os.pathsep}{folder}",
        "BENTOML_HOME": str(folder / ".bentoml"),
        "TMPDIR": str(scratch(folder)),
        "OMP_WAIT_POLICY": "PASSIVE",
    }


def scratch(folder: Path) -> Path:
    """Where the programs of a copy put temporary files."""
    place = folder.with_name(f"{folder.name}-tmp")
    place.mkdir(exist_ok=True)
    return place


class Session:
    """A program in a copy, in a session of its own; what it says goes to a file."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.arguments = arguments
        number, log = tempfile.mkstemp(dir=scratch(folder), prefix="said-")
        self._log = Path(log)
        with os.fdopen(number, "wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *arguments],
                cwd=folder,
                env=environment(folder),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def said(self) -> str:
        """What it and the programs below it have said so far."""
        return self._log.read_text(encoding="utf-8", errors="replace")

    def end(self) -> str:
        """Wait for its end, which must be a good one; what it said."""
        code = self.process.wait()
        assert code == 0, f"{' '.join(self.arguments)}: {code}\n{self.said()}"
        return self.said()


def run(folder: Path, *arguments: str) -> str:
    """``python -m ARGUMENTS`` in the copy to its good end; what it said."""
    return Session(folder, *arguments).end()

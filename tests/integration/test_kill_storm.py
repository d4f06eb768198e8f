"""kill -9 at random moments over the whole graph: afterwards it is as if nothing had happened."""

from __future__ import annotations

import json
import math
import os
import random
import signal
import sqlite3
import time
from collections import Counter
from contextlib import closing, suppress
from pathlib import Path

import psutil
import pytest
import tinygraph
from safetensors import safe_open
from tinygraph import Session

from iwm.training.tracking import read_history

KILLS = {
    "record": 6,
    "ingest": 5,
    "validate": 3,
    "shard": 5,
    "branch": 3,
    "trajectories@particles": 3,
    "train@core": 6,
    "evaluate@core": 4,
    "gate@core": 2,
    "register@core": 5,
    "train@embodied": 4,
    "evaluate@embodied": 2,
    "register@embodied": 3,
    "package": 6,
}
"""Kills of each stage's own process, at least."""

# Folders whose files are the same bytes whatever happened on the way.
EXACT = (
    "data",
    "artifacts/index",
    "artifacts/shards",
    "artifacts/branches",
    "artifacts/trajectories",
)
EXACT_FILES = (
    "data.dvc",
    *(
        f"artifacts/models/{phase}/{name}"
        for phase in tinygraph.PHASES
        for name in ("model.safetensors", "config.json")
    ),
    *(f"artifacts/evaluation/{phase}/calibration.json" for phase in tinygraph.PHASES),
    *(f"reports/gates/{phase}.json" for phase in tinygraph.PHASES),
    *(f"reports/metrics/{phase}.json" for phase in tinygraph.PHASES),
    "artifacts/models/embodied/intention.safetensors",
    # Not the validation's: a second one has the last that passed to compare with.
)


DATABASE = "mlruns/mlflow.db"
BENTOS = ".bentoml/bentos/iwm"
HISTORY = "artifacts/models/{}/history.jsonl"
VERSION = ("name", "version", "weights_sha256", "evidence_sha256", "gate", "data_revision")


def program(stage: str) -> list[str]:
    """The end of the command line that dvc.yaml gives a stage."""
    name, _, phase = stage.partition("@")
    return [f"pipelines.{name}", *([phase] if phase else [])]


def command(stage: str, *, force: bool = False) -> list[str]:
    """How a stage is run."""
    if stage == "record":
        return ["pipelines.record"]
    return ["dvc", "repro", *(["-f", "-s"] if force else []), stage]


def stage_process(session: Session, stage: str) -> psutil.Process | None:
    """The stage's own process, once it is there; ``None``: it never was."""
    wanted = program(stage)
    while session.process.poll() is None:
        with suppress(psutil.NoSuchProcess):
            top = psutil.Process(session.process.pid)
            for process in [top, *top.children(recursive=True)]:
                with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                    words = process.cmdline()
                    if words[-len(wanted) :] == wanted and "-m" in words[:3]:
                        return process
        time.sleep(0.01)
    return None


def lives(process: psutil.Process) -> bool:
    """Whether a process has neither ended nor is waited for."""
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def watch(process: psutil.Process, session: Session, seconds: float = math.inf) -> None:
    """Wait for a process to end, but no longer than ``seconds``."""
    until = time.monotonic() + seconds
    while session.process.poll() is None and lives(process) and time.monotonic() < until:
        time.sleep(0.005)


def undisturbed(folder: Path) -> dict[str, float]:
    """Run the whole graph; returns how long each stage's process lived."""
    lived = {}
    for stage in ("record", *tinygraph.STAGES):
        session = Session(folder, *command(stage))
        found = stage_process(session, stage)
        assert found is not None, f"{stage}: {session.said()}"
        began = time.monotonic()
        watch(found, session)
        lived[stage] = time.monotonic() - began
        session.end()
    return lived


def exact(folder: Path) -> dict[str, bytes]:
    """What must be the same bytes in the end; of what is there now."""
    found = {}
    for top in EXACT:
        for file in sorted((folder / top).rglob("*")):
            name = file.relative_to(folder)
            hidden = any(part.startswith(".") for part in name.parts)
            if file.is_file() and not hidden:
                with suppress(FileNotFoundError):  # what a kill left running may move it
                    found[str(name)] = file.read_bytes()
    for name in EXACT_FILES:
        with suppress(FileNotFoundError):
            found[name] = (folder / name).read_bytes()
    return found


def check_nothing_partial(folder: Path, whole: dict[str, bytes]) -> None:
    """Whatever stands under its final name is what the undisturbed run wrote there."""
    for name, content in exact(folder).items():
        assert whole.get(name) == content, f"{name} is not what it should be"
    for part in folder.glob("artifacts/models/*/checkpoints/step-*/*.safetensors"):
        with suppress(FileNotFoundError), safe_open(part, "numpy") as tensors:
            assert tensors.keys()
    for report in [*folder.glob("reports/**/*.json"), *folder.glob("artifacts/**/*.json")]:
        if "partial" not in str(report):
            with suppress(FileNotFoundError):
                json.loads(report.read_text())
    for version in versions(folder):
        assert version["evidence_sha256"], version
    for bento in folder.glob(f"{BENTOS}/*/"):
        assert (bento / "bento.yaml").is_file(), f"{bento}: half a Bento"


def versions(folder: Path) -> list[dict[str, str]]:
    """Every version in the registry, with its tags."""
    store = folder / DATABASE
    if not store.exists():
        return []
    with closing(sqlite3.connect(f"{store.as_uri()}?mode=ro", uri=True)) as database:
        if not database.execute(
            "SELECT 1 FROM sqlite_master WHERE name = 'model_version_tags'"
        ).fetchone():
            return []
        rows = database.execute(
            "SELECT name, version FROM model_versions ORDER BY name, version"
        ).fetchall()
        tags = database.execute(
            "SELECT name, version, key, value FROM model_version_tags"
        ).fetchall()
    held = {row: {"name": row[0], "version": str(row[1]), "evidence_sha256": ""} for row in rows}
    for name, version, key, value in tags:
        held[name, version][key] = value
    return list(held.values())


def left_running(folder: Path) -> list[str]:
    """Programs that still work in the copy."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get("BENTOML_HOME") == str(folder / ".bentoml"):
                found.append(f"{process.pid} {' '.join(process.cmdline())[:200]}")
    return found


class Storm:
    """Kills stages of one copy until each had its share."""

    def __init__(self, folder: Path, lived: dict[str, float], seed: int) -> None:
        self.folder, self.lived = folder, lived
        self.random = random.Random(seed)
        self.kills: Counter[str] = Counter()
        self.after: Counter[str] = Counter()

    def strike(self, stage: str, *, force: bool) -> None:
        """Start a stage and kill it some time into its life; others may be killed with it."""
        delay = self.random.uniform(0.0, self.lived[stage])
        victim = self.random.choice(("stage", "all", "all", "dvc"))
        session = Session(self.folder, *command(stage, force=force))
        found = stage_process(session, stage)
        if found is None:
            session.end()
            self.missed = True
            return
        watch(found, session, delay)
        hit = lives(found)
        if victim == "stage":
            with suppress(psutil.NoSuchProcess):
                found.kill()
        elif victim == "dvc":
            session.process.kill()
        else:
            with suppress(ProcessLookupError):
                os.killpg(session.process.pid, signal.SIGKILL)
        session.process.wait()
        (self.kills if hit else self.after)[stage] += 1
        print(f"{stage}: {victim} after {delay:.2f} s{'' if hit else ', it had ended'}", flush=True)

    def over(self, stage: str, whole: dict[str, bytes]) -> None:
        """All kills of one stage, each followed by a look at what stands there."""
        self.missed = False
        for _ in range(4 * KILLS[stage]):
            if self.kills[stage] >= KILLS[stage]:
                break
            self.strike(stage, force=self.missed)
            check_nothing_partial(self.folder, whole)
        tinygraph.run(self.folder, *command(stage))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_fifty_kills_and_the_same_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tinygraph.ROOT)
    calm, struck = tmp_path / "calm", tmp_path / "struck"
    for folder in (calm, struck):
        tinygraph.make(folder)
    lived = undisturbed(calm)
    print({stage: round(seconds, 1) for stage, seconds in lived.items()}, flush=True)
    whole = exact(calm)
    storm = Storm(struck, lived, seed=8)
    for stage in KILLS:
        storm.over(stage, whole)
    tinygraph.run(struck, "dvc", "repro")
    assert "up to date" in tinygraph.run(struck, "dvc", "repro")

    print(dict(storm.kills), dict(storm.after), flush=True)
    assert all(storm.kills[stage] >= KILLS[stage] for stage in KILLS)
    assert sum(storm.kills.values()) >= 50
    assert_the_same(struck, calm)


def assert_the_same(struck: Path, calm: Path) -> None:
    """The copy that was struck holds what the other one does, once each, and nothing works on."""
    one, two = exact(struck), exact(calm)
    assert one.keys() == two.keys()
    assert [name for name in one if one[name] != two[name]] == []
    for phase in tinygraph.PHASES:
        losses = [
            [(row["step"], row["loss"]) for row in read_history(folder / HISTORY.format(phase))]
            for folder in (struck, calm)
        ]
        assert losses[0] == losses[1]
    # The registry: one version each, of the same evidence, the champion, its run closed.
    told = [
        [{key: version[key] for key in VERSION} for version in versions(folder)]
        for folder in (struck, calm)
    ]
    assert told[0] == told[1]
    assert [version["version"] for version in told[0]] == ["1", "1"]
    with closing(sqlite3.connect(struck / DATABASE)) as database:
        champions = database.execute("SELECT alias, version FROM registered_model_aliases")
        assert champions.fetchall() == [("champion", 1)] * 2
        states = database.execute(
            "SELECT status FROM runs WHERE run_uuid IN (SELECT run_id FROM model_versions)"
        )
        assert states.fetchall() == [("FINISHED",)] * 2
    # The Bento: the same content, built once.
    tags = [
        json.loads((folder / "artifacts/package.json").read_text())["tag"]
        for folder in (struck, calm)
    ]
    assert tags[0] == tags[1]
    assert [path.name for path in (struck / BENTOS).iterdir() if path.is_dir()] == [
        tags[0].split(":")[1]
    ]
    # Nothing is left that takes up space, or works on.
    assert [path for path in struck.glob("artifacts/**/*partial*") if path.is_dir()] == []
    until = time.monotonic() + 60
    while left := left_running(struck):
        assert time.monotonic() < until, left
        time.sleep(0.5)

"""A repository with a small graph of trivial stages, for flows that run in a second or two."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from iwm.gameplay.schema import Recording
from iwm.gameplay.writer import RecordingWriter

ROOT = Path(__file__).parents[2]

DVC_YAML = """\
stages:
  ingest:
    cmd: python work.py ingest
    deps: [data, work.py]
    outs: [artifacts/ingest]
  train:
    matrix:
      phase: [core, other]
    cmd: python work.py train@${item.phase}
    deps: [artifacts/ingest]
    outs:
      - artifacts/train@${item.phase}:
          persist: true
  gate:
    matrix:
      phase: [core, other]
    cmd: python work.py gate@${item.phase}
    deps: ["artifacts/train@${item.phase}"]
    outs: ["artifacts/gate@${item.phase}"]
  register:
    cmd: python work.py register
    deps: ["artifacts/gate@core"]
    outs: [artifacts/register]
  package:
    cmd: python work.py package
    deps: [artifacts/register]
    outs: [artifacts/package]
  report:
    cmd: python work.py report
    deps: ["artifacts/gate@other", artifacts/package]
    outs: [artifacts/report]
"""

# What a stage does is told by behave.json, which DVC does not watch.
WORK = """\
import json, os, pathlib, signal, subprocess, sys, time
name = sys.argv[1]
how = json.loads(pathlib.Path("behave.json").read_text()).get(name, "")
calls = pathlib.Path("calls"); calls.mkdir(exist_ok=True)
with open(calls / name, "a") as file:
    file.write(f"{time.time()}\\n")
out = pathlib.Path("artifacts") / name
out.mkdir(parents=True, exist_ok=True)
print(f"{name}: begins", flush=True)
if how == "fail":
    print("error: mrr.model 0.031 is 0.169 below the threshold 0.2", file=sys.stderr)
    sys.exit(1)
if how == "crash":
    raise ValueError("a bug")
if how.startswith("kill") and len((calls / name).read_text().split()) <= int(how[4:]):
    os.kill(os.getpid(), signal.SIGKILL)
if how == "talk":
    for line in range(20000):
        print(f"line {line}")
if how == "hang":
    steps = out / "checkpoint"
    done = int(steps.read_text()) if steps.exists() else 0
    print(f"{name}: resumes at {done}", flush=True)
    steps.write_text(str(done + 7))
    # One child that ignores the first request to end, in a session of its own.
    child = subprocess.Popen(
        [sys.executable, "-c", "import signal, time; signal.signal(15, signal.SIG_IGN);"
         "print('up', flush=True); time.sleep(600)"],
        start_new_session=True, stdout=subprocess.PIPE)
    child.stdout.readline()
    pathlib.Path("pids.json").write_text(json.dumps([os.getpid(), os.getppid(), child.pid]))
    time.sleep(600)
if name == "package":
    pathlib.Path("artifacts/package.json").write_text(json.dumps({"tag": "iwm:abc"}))
(out / "made").write_text(name)
print(f"{name}: done", flush=True)
"""


def record(folder: Path, steps: int = 6) -> Path:
    """A real, whole recording."""
    size = 32
    about = Recording(
        name=folder.name,
        game="toy",
        source="procedural",
        fps=10.0,
        width=size,
        height=size,
        actions=("noop", "go"),
        licence="CC0-1.0",
        seed=0,
    )
    images = np.random.default_rng(len(folder.name)).integers(
        0, 255, (steps, size, size, 3), np.uint8
    )
    with RecordingWriter(folder, about) as writer:
        for step, image in enumerate(images):
            last = step == steps - 1
            writer.append(
                image,
                episode=0,
                step=step,
                time_s=step / 10,
                action=-1 if last else step % 2,
                reward=0.0,
                done=last,
            )
    return folder


def behave(repo: Path, **stages: str) -> None:
    """What stages do from now on, e.g. ``gate_core="fail"``."""
    told = {name.replace("_", "@"): how for name, how in stages.items()}
    (repo / "behave.json").write_text(json.dumps(told))


def calls(repo: Path, stage: str) -> list[float]:
    """When a stage's command was started, oldest first."""
    path = repo / "calls" / stage
    return [float(line) for line in path.read_text().split()] if path.exists() else []


def make(repo: Path) -> Path:
    """Create the repository, with data that no data.dvc names yet."""
    repo.mkdir(parents=True)
    (repo / "dvc.yaml").write_text(DVC_YAML)
    (repo / "work.py").write_text(WORK)
    (repo / "data").mkdir()
    (repo / "data" / "a.txt").write_text("a")
    for name in ("prefect.toml", "prefect.yaml"):
        (repo / name).write_bytes((ROOT / name).read_bytes())
    (repo / "flows").symlink_to(ROOT / "flows")
    behave(repo)
    for command in (["git", "init", "-q"], [sys.executable, "-m", "dvc", "init", "-q"]):
        subprocess.run(command, cwd=repo, check=True)
    return repo


def alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        state = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0]
    except OSError:
        return False
    return state != b"Z"


def path_of_this_environment() -> str:
    """PATH with this environment's programs first; the toy's stages say ``python``."""
    return f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"

"""What stages leave for Prometheus."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from iwm.files import write_json
from iwm.monitoring import board as boards
from iwm.monitoring import catalogue as c
from iwm.monitoring.board import Board
from iwm.monitoring.stages import observed, place, write_state


@pytest.fixture(autouse=True)
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setenv(boards.FOLDER, str(tmp_path / "metrics"))
    return tmp_path


def left(name: str) -> Board:
    board = Board(name)
    board.take_up(c.METRICS)
    return board


def test_command_lines() -> None:
    assert place(["train", "core"]) == ("train", "core")
    assert place(["train", "--help"]) == ("train", "")
    assert place(["ingest", "data"]) == ("ingest", "")
    assert place([]) == ("", "")


def test_runs_are_counted_by_how_they_ended() -> None:
    with observed("ingest"):
        running = left("stage_ingest")
    assert running.get(c.STAGE_RUNNING, "ingest", "") == 1
    with observed("ingest"), pytest.raises(SystemExit):
        sys.exit(1)
    for error in (SystemExit(3), RuntimeError(), KeyboardInterrupt()):
        with pytest.raises(type(error)), observed("ingest"):
            raise error
    with pytest.raises(SystemExit), observed("ingest"):
        raise SystemExit(0)
    board = left("stage_ingest")
    assert {r: board.get(c.STAGE_RUNS, "ingest", "", r) for r in ("done", "failed", "stopped")} == {
        "done": 3,
        "failed": 2,
        "stopped": 1,
    }
    assert board.get(c.STAGE_RUNNING, "ingest", "") == 0
    success = board.get(c.STAGE_SUCCESS, "ingest", "")
    started = board.get(c.STAGE_STARTED, "ingest", "")
    assert success is not None
    assert started is not None
    assert success >= started


def test_a_killed_run_is_counted_when_the_stage_is_started_next() -> None:
    program = (
        "import os, signal\n"
        "from iwm.monitoring.stages import observed\n"
        "with observed('train', 'core'):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], check=False)
    assert done.returncode == -signal.SIGKILL
    with observed("train", "core"):
        pass
    board = left("stage_train_core")
    assert board.get(c.STAGE_RUNS, "train", "core", "killed") == 1
    assert board.get(c.STAGE_RUNS, "train", "core", "done") == 1


@pytest.mark.parametrize("replaced", [True, False])
def test_a_training_of_several_processes_counts_once(replaced: bool) -> None:
    """torchrun in the place of the process that began, or beside it."""
    rank = "from iwm.monitoring.stages import observed\nwith observed('train', 'core'): pass"
    torchrun = (
        "import os, subprocess, sys\n"
        "for rank in '01':\n"
        f"    command = [sys.executable, '-c', {rank!r}]\n"
        "    subprocess.run(command, env={**os.environ, 'RANK': rank}, check=True)\n"
    )
    how = "os.execv(sys.executable, command)" if replaced else "subprocess.run(command, check=True)"
    program = (
        "import os, subprocess, sys\n"
        "from iwm.monitoring.stages import observed\n"
        "with observed('train', 'core'):\n"
        f"    command = [sys.executable, '-c', {torchrun!r}]\n"
        f"    {how}\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
    board = left("stage_train_core")
    assert board.get(c.STAGE_RUNS, "train", "core", "done") == 1
    assert board.get(c.STAGE_RUNS, "train", "core", "killed") is None
    assert board.get(c.STAGE_RUNNING, "train", "core") == 0


def test_other_commands_and_other_ranks_are_not_counted(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with observed("status"):
        pass
    monkeypatch.setenv("RANK", "1")
    with observed("train", "core"):
        pass
    assert not (checkout / "metrics").exists()


def test_the_state_of_data_and_gates(checkout: Path) -> None:
    shards = {"revision": "abc", "recordings": ["a", "b"], "frames": {"train": 8, "val": 1}}
    write_json(checkout / "artifacts/shards/shards.json", shards)
    index = {"version": 2, "set_aside": {"a": 3}}
    write_json(checkout / "artifacts/index/recordings.json", index)
    (checkout / "data.dvc").write_text("outs:\n- md5: 48.dir\n  path: data\n")

    def rule(threshold: float, verdict: str, comparison: str = ">") -> dict[str, object]:
        return {
            "figure": "mrr",
            "value": 0.6,
            "threshold": threshold,
            "verdict": verdict,
            "comparison": comparison,
        }

    rules = [rule(0.7, "fail"), rule(0.5, "pass")]
    write_json(checkout / "reports/gates/core.json", {"passed": False, "rules": rules})
    (checkout / "reports/gates/half.json").write_text('{"passed": tr')
    write_state()
    board = left("state")
    assert board.get(c.DATASET, "abc", "48.dir") == 1
    assert (board.get(c.FRAMES, "train"), board.get(c.RECORDINGS)) == (8, 2)
    assert board.get(c.QUARANTINED, "a") == 3
    assert board.get(c.GATE, "core") == 0
    assert board.get(c.GATE, "half") is None
    assert board.get(c.GATE_RULE, "core", "mrr") == 0
    assert board.get(c.GATE_FIGURE, "core", "mrr") == 0.6
    assert board.get(c.GATE_THRESHOLD, "core", "mrr") == 0.7


def test_the_state_of_nothing() -> None:
    write_state()
    assert [path.name for path in Path("metrics").iterdir()] == ["iwm_state.prom"]

"""Real processes, started by torchrun, against one process on the same global batches.

Dropout is off here: its draws differ from rank to rank, as those of one process's rows do.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import trainruns as runs
from safetensors.torch import load_file

from iwm.data.reader import ShardStore
from iwm.training.checkpoint import checkpoints
from iwm.training.tracking import read_history

STILL: dict[str, Any] = {"epochs": 1, "model": {"predictor": {"dropout": 0.0}}}
KEPT = {"config.json", "model.safetensors", "training.json", "history.jsonl"}


def command(processes: int, shards: Path, out: Path, **over: Any) -> list[str]:
    start = [sys.executable]
    if processes > 1:
        launcher = ["-m", "torch.distributed.run", "--standalone"]
        start += [*launcher, "--nproc-per-node", str(processes)]
    return [*start, runs.__file__, str(shards), str(out), json.dumps({**STILL, **over})]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def start(processes: int, shards: Path, out: Path, **over: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(processes, shards, out, **over),
        env=environment(),
        capture_output=True,
        text=True,
        timeout=500,
    )


def until(
    line: str, act: Callable[[subprocess.Popen[str]], None], processes: int, *where: Path
) -> str:
    """Run, act on the process at a printed line, and return all that was printed."""
    printed = []
    with subprocess.Popen(
        command(processes, *where, pause=0.05),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        for text in process.stdout:
            printed.append(text)
            if text == f"{line}\n":
                act(process)
    return "".join(printed)


def kill_all(process: subprocess.Popen[str]) -> None:
    """No process of the run has a moment to tidy up."""
    own = {process.pid, *_descendants(process.pid)}
    for pid in own:
        os.kill(pid, signal.SIGKILL)


def _descendants(pid: int) -> set[int]:
    found: set[int] = set()
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in task.read_text().split():
            found |= {int(child), *_descendants(int(child))}
    return found


@pytest.fixture(scope="module")
def alone(tiny_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("alone") / "model"
    runs.make(ShardStore(tiny_shards), out, **STILL).fit()
    torch.set_num_threads(before)
    return out


def same_curve(one: Path, two: Path) -> None:
    a, b = (read_history(path / "history.jsonl") for path in (one, two))
    assert [row["step"] for row in a] == [row["step"] for row in b]
    for figure in ("loss", "loss_cls_only", "loss_variance", "loss_covariance", "effective_rank"):
        relative = 1e-5 if figure == "effective_rank" else 0.0
        expected = pytest.approx([row[figure] for row in a], abs=1e-5, rel=relative)
        assert [row[figure] for row in b] == expected, figure
    weights, others = (load_file(path / "model.safetensors") for path in (one, two))
    assert weights.keys() == others.keys()
    for name, weight in weights.items():
        # The bias of a key changes no attention: its gradient is rounding, which Adam scales up.
        if not name.endswith("qkv.bias"):
            torch.testing.assert_close(others[name], weight, atol=1e-4, rtol=1e-3, msg=name)


def test_two_processes_give_the_curve_of_one(
    alone: Path, tiny_shards: Path, tmp_path: Path
) -> None:
    done = start(2, tiny_shards, tmp_path / "two")
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (tmp_path / "two").iterdir()} == KEPT
    same_curve(alone, tmp_path / "two")


@pytest.mark.slow
def test_sharded_processes_give_the_curve_of_one(
    alone: Path, tiny_shards: Path, tmp_path: Path
) -> None:
    done = start(2, tiny_shards, tmp_path / "fsdp", sharding="fsdp")
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (tmp_path / "fsdp").iterdir()} == KEPT
    same_curve(alone, tmp_path / "fsdp")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "after", "sharding"), [(1, 2, "fsdp"), (2, 1, "ddp"), (2, 5, "ddp")]
)
def test_a_killed_run_goes_on_with_another_number_of_processes(
    before: int, after: int, sharding: str, alone: Path, tiny_shards: Path, tmp_path: Path
) -> None:
    out = tmp_path / "model"
    until("step 7", kill_all, before, tiny_shards, out)
    assert [path.name for path in checkpoints(out / "checkpoints")] == ["step-00000005"]
    done = start(after, tiny_shards, out, sharding=sharding)
    assert done.returncode == 0, done.stderr
    assert "going on from step 5 of 12" in done.stdout
    same_curve(alone, out)


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_at_one_step(
    alone: Path, tiny_shards: Path, tmp_path: Path
) -> None:
    out = tmp_path / "model"

    def ask_one(process: subprocess.Popen[str]) -> None:
        os.kill(max(_descendants(process.pid)), signal.SIGTERM)

    printed = until("step 3", ask_one, 2, tiny_shards, out)
    errors = [line for line in printed.splitlines() if line.startswith("error: ")]
    assert len(errors) == 2
    assert len(set(errors)) == 1
    assert "by SIGTERM" in errors[0]
    done = start(1, tiny_shards, out)
    assert done.returncode == 0, done.stderr
    same_curve(alone, out)


@pytest.mark.slow
def test_a_bad_batch_in_one_process_stops_all_and_is_named(
    tiny_shards: Path, tmp_path: Path
) -> None:
    done = start(2, tiny_shards, tmp_path / "model", poison=[1, 8])
    assert done.returncode != 0
    # torchrun may end the second process before it has said the same.
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(set(errors)) == 1
    assert "loss is inf at step 7; last good checkpoint: " in errors[0]
    assert "step-00000005; batch: " in errors[0]
    assert errors[0].endswith("and 8 more"), "the keys are those of the rank that saw it"
    assert [path.name for path in checkpoints(tmp_path / "model" / "checkpoints")] == [
        "step-00000005"
    ]

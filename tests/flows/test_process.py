from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import toy

from flows.process import (
    Ended,
    InfrastructureError,
    StageFailed,
    Stopped,
    Supervisor,
    judge,
    supervised,
    supervisor_of,
)

# A tree: a child that refuses SIGTERM, and below it one that left the process group.
TREE = """
import json, os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"],
                         start_new_session=True)
with open(sys.argv[1] + ".part", "w") as file:
    json.dump([os.getpid(), child.pid], file)
os.rename(sys.argv[1] + ".part", sys.argv[1])
{then}
"""


def tree(path: Path, then: str = "time.sleep(600)") -> list[str]:
    return [sys.executable, "-c", TREE.replace("{then}", then), str(path)]


def wait_for(condition: object, patience_s: float = 30.0) -> None:
    assert callable(condition)
    deadline = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_output_arrives_whole_in_order_and_is_joined_when_it_comes_fast() -> None:
    records: list[str] = []
    code = "print('first', flush=True)\nfor i in range(20000): print('line', i)"
    ended = Supervisor().run([sys.executable, "-c", code], records.append)
    assert ended.code == 0
    assert "\n".join(records).splitlines() == ["first", *(f"line {i}" for i in range(20000))]
    assert len(records) < 400
    assert ended.tail[-1] == "line 19999"


def test_both_streams_carriage_returns_and_bad_bytes() -> None:
    records: list[str] = []
    code = (
        "import sys, os; os.write(1, b'a\\rb\\xff\\n');"
        "sys.stderr.write('error: no\\n'); sys.exit(3)"
    )
    ended = Supervisor().run([sys.executable, "-c", code], records.append)
    assert ended == Ended(3, ("a", "b\ufffd", "error: no"))


def test_a_slow_log_makes_the_command_wait() -> None:
    """Back-pressure: what is held in memory stays bounded."""
    code = "import sys\nfor i in range(200000): print('x' * 100)\nprint('end', file=sys.stderr)"
    seen = 0

    def log(record: str) -> None:
        nonlocal seen
        seen += record.count("\n") + 1
        if seen > 1000:
            raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        Supervisor().run([sys.executable, "-c", code], log, grace_s=1)


def test_a_signal_is_told_as_in_a_shell() -> None:
    code = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    assert Supervisor().run([sys.executable, "-c", code], print).code == 128 + signal.SIGKILL


def test_close_ends_the_whole_tree_and_refuses_more(tmp_path: Path) -> None:
    supervisor, pids = Supervisor(), tmp_path / "pids"
    raised: list[BaseException] = []

    def work() -> None:
        try:
            supervisor.run(tree(pids), print, grace_s=0.5)
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    wait_for(pids.exists)
    processes = json.loads(pids.read_text())
    assert all(map(toy.alive, processes))
    supervisor.close()
    assert not any(map(toy.alive, processes))
    thread.join()
    assert isinstance(raised[0], Stopped)
    with pytest.raises(Stopped):
        supervisor.run(["true"], print)


def test_nothing_is_left_when_the_command_ends_by_itself(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    ended = Supervisor().run(tree(pids, then="print('bye')"), print, grace_s=0.5)
    assert ended == Ended(0, ("bye",))
    assert not any(map(toy.alive, json.loads(pids.read_text())))


def test_nothing_is_left_when_the_flows_process_is_killed(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    code = (
        "import json, sys; from flows.process import Supervisor; "
        "Supervisor().run(json.loads(sys.argv[1]), print, grace_s=0.5)"
    )
    flow = subprocess.Popen([sys.executable, "-c", code, json.dumps(tree(pids))], cwd=toy.ROOT)
    wait_for(pids.exists)
    processes = json.loads(pids.read_text())
    flow.kill()
    flow.wait()
    wait_for(lambda: not any(map(toy.alive, processes)))


def test_supervisors_are_found_by_their_run() -> None:
    with supervised("a") as supervisor:
        assert supervisor_of("a") is supervisor
    with pytest.raises(Stopped):
        supervisor_of("a")


FAILED = "ERROR: failed to reproduce 'gate@core': failed to run: python -m x, exited with {}"


@pytest.mark.parametrize(
    ("code", "tail", "kind", "message"),
    [
        (137, ("half a line",), InfrastructureError, "gate@core was ended by SIGKILL"),
        (255, (FAILED.format(-9),), InfrastructureError, "gate@core was ended by SIGKILL"),
        (255, (FAILED.format(143),), InfrastructureError, "gate@core was ended by SIGTERM"),
        (
            255,
            ("ERROR: Unable to acquire lock. Most likely another DVC process is running",),
            InfrastructureError,
            "gate@core: another DVC process holds the lock",
        ),
        (
            255,
            ("ERROR: '/a/dvc.yaml' is busy, it is being blocked by:", "  (PID 3): repro"),
            InfrastructureError,
            "gate@core: another DVC process holds the lock",
        ),
        (
            255,
            ("> python", "error: mrr.model missed by 0.1", FAILED.format(1)),
            StageFailed,
            "gate@core failed: mrr.model missed by 0.1",
        ),
        (
            255,
            ("> python", "error: lost the host 10.0.0.2", FAILED.format(75)),
            InfrastructureError,
            "gate@core: lost the host 10.0.0.2",
        ),
        (
            255,
            ("Traceback (most recent call last):", "ValueError: a bug", FAILED.format(1)),
            StageFailed,
            "gate@core failed: ValueError: a bug",
        ),
        (255, (FAILED.format(2),), StageFailed, f"gate@core failed: {FAILED.format(2)}"),
        (1, (), StageFailed, "gate@core failed: no output"),
    ],
)
def test_what_an_end_means(
    code: int, tail: tuple[str, ...], kind: type[Exception], message: str
) -> None:
    error = judge("gate@core", Ended(code, tail))
    assert type(error) is kind
    assert str(error) == message


def test_success_means_nothing() -> None:
    assert judge("gate@core", Ended(0, ("error: a word in passing",))) is None

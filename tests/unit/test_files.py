from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from iwm.files import (
    TEMPORARY_PREFIX,
    atomic_directory,
    atomic_path,
    only_one,
    read_json,
    write_json,
)


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "file.txt"
    with pytest.raises(RuntimeError), atomic_path(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert list(target.parent.iterdir()) == []
    with atomic_path(target) as temporary:
        temporary.write_text("whole")
        assert not target.exists()
    assert target.read_text() == "whole"


def test_a_failed_rewrite_keeps_the_old_folder(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with atomic_directory(target) as temporary:
        (temporary / "a").write_text("old")
    with pytest.raises(RuntimeError), atomic_directory(target) as temporary:
        (temporary / "a").write_text("new")
        raise RuntimeError
    assert (target / "a").read_text() == "old"
    with atomic_directory(target) as temporary:
        (temporary / "b").write_text("new")
    assert [path.name for path in target.iterdir()] == ["b"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_replacing_does_not_touch_a_hard_link(tmp_path: Path) -> None:
    # DVC links outputs to its cache; writing in place would corrupt the cache.
    target, cache = tmp_path / "file.json", tmp_path / "cache"
    write_json(target, {"version": 1})
    os.link(target, cache)
    write_json(target, {"version": 2})
    assert read_json(cache) == {"version": 1}


def test_json_refuses_what_json_cannot_say(tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        write_json(tmp_path / "x.json", {"a": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_kill_9_in_the_middle_leaves_nothing_under_the_final_name(tmp_path: Path) -> None:
    script = (
        "import sys, time\n"
        "from iwm.files import atomic_path\n"
        "with atomic_path(sys.argv[1]) as path:\n"
        "    path.write_text('half'); print('ready', flush=True); time.sleep(60)\n"
    )
    target = tmp_path / "file"
    child = subprocess.Popen(
        [sys.executable, "-c", script, str(target)], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    assert child.stdout.readline().strip() == "ready"
    child.send_signal(signal.SIGKILL)
    child.wait()
    time.sleep(0.05)
    assert not target.exists()
    assert all(path.name.startswith(TEMPORARY_PREFIX) for path in tmp_path.iterdir())


ONE = """
import sys, time
from pathlib import Path
from iwm.files import only_one, temporary_beside
target = Path(sys.argv[1])
with only_one(target):
    temporary_beside(target).mkdir()
    print('ready', flush=True)
    time.sleep(60)
"""


def test_a_second_maker_waits_for_the_first_and_clears_up_after_its_death(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "out"
    other = tmp_path / f"{TEMPORARY_PREFIX}01234567-another-out"
    other.mkdir()
    child = subprocess.Popen(
        [sys.executable, "-c", ONE, str(target)], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    assert child.stdout.readline().strip() == "ready"
    entered: list[float] = []

    def enter() -> None:
        with only_one(target):
            entered.append(time.monotonic())

    second = threading.Thread(target=enter)
    second.start()
    second.join(0.3)
    assert second.is_alive()
    assert len(list(tmp_path.glob(f"{TEMPORARY_PREFIX}*"))) == 2
    child.kill()
    child.wait()
    second.join(30)
    assert entered
    assert list(tmp_path.glob(f"{TEMPORARY_PREFIX}*")) == [other]
    assert f"out: waiting for process {child.pid}, which is making it" in capsys.readouterr().err

"""What operators and disks do to a checkout: each fault is one line, and nothing is lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tinymodel import write_phase

from iwm.files import read_json, write_json
from pipelines import _bentos, _registry
from pipelines._mend import mend
from pipelines._mlflow import configure
from pipelines.register import register

ROOT = Path(__file__).parents[2]
YEAR_S = 365 * 86400


def stage(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """A stage's command in a checkout."""
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


# -- killed while it registers ----------------------------------------------------------


@pytest.mark.parametrize("moment", ["crown", "version_by_alias"])
def test_a_registration_cut_short_goes_on_in_the_same_version(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    write_phase(checkout)
    client = configure()

    class Killed(BaseException):
        pass

    was = getattr(_registry, moment)

    def die(*arguments: object) -> object:
        if client.search_model_versions("name='iwm'"):
            raise Killed
        return was(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(_registry, moment, die)
        with pytest.raises(Killed):
            register("core")
    (half,) = client.search_model_versions("name='iwm'")
    assert half.tags["evidence_sha256"]  # what the next attempt finds it by
    assert half.tags["gate"] == "passed"
    result = register("core")
    assert (result["version"], result["alias"]) == ("1", "champion")
    (version,) = client.search_model_versions("name='iwm'")
    assert "mrr.model" in version.description
    assert client.get_run(version.run_id).info.status == "FINISHED"


# -- two at once ------------------------------------------------------------------------


def test_two_registrations_at_once_make_one_version(checkout: Path) -> None:
    write_phase(checkout)
    command = [sys.executable, "-m", "pipelines.register", "core"]
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    both = [
        subprocess.Popen(command, cwd=checkout, env=environ, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [process.communicate()[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert len(configure().search_model_versions("name='iwm'")) == 1
    assert sum("waiting for process" in words for words in said) == 1


# -- a damaged database -----------------------------------------------------------------


@pytest.mark.parametrize("where", ["header", "pages", "cut"])
def test_a_damaged_mlflow_database_is_one_line_that_names_it(checkout: Path, where: str) -> None:
    write_phase(checkout)
    register("core")
    database = checkout / "mlruns/mlflow.db"
    content = bytearray(database.read_bytes())
    if where == "header":
        content[:64] = b"\x00" * 64
    elif where == "pages":
        content[4096:] = b"\xa5" * (len(content) - 4096)
    else:
        del content[len(content) // 3 :]
    database.write_bytes(content)
    for command in (("pipelines.register", "core"), ("pipelines.rollback", "core", "--no-bento")):
        done = stage(*command, cwd=checkout)
        assert done.returncode == 1
        (line,) = [row for row in done.stderr.splitlines() if row.startswith("error: ")]
        assert "mlruns/mlflow.db" in line
        assert "move it away" in line
        assert "Traceback" not in done.stderr
    # What the line says helps: the next registration makes a new store.
    database.rename(database.with_suffix(".damaged"))
    done = stage("pipelines.register", "core", cwd=checkout)
    assert done.returncode == 0, done.stderr
    assert read_json(checkout / "artifacts/registry/core.json")["version"] == "1"


# -- files that cannot be written -------------------------------------------------------


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A checkout's artifacts/ on a file system that is mounted read-only."""
    folder = tmp_path / "artifacts"
    folder.mkdir(exist_ok=True)
    inside = folder / "index"
    inside.mkdir()
    (inside / "kept").write_text("kept")
    mount = ["mount", "--bind", "-o", "ro", str(folder), str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a folder read-only")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_read_only_artifacts_are_one_line_and_nothing_changes(
    read_only: Path, checkout: Path
) -> None:
    (checkout / "data").mkdir()
    before = sorted(read_only.rglob("*"))
    for command in (
        ("pipelines.ingest",),
        ("pipelines.shard",),
        ("pipelines.branch",),
        ("pipelines.trajectories", "particles"),
        ("pipelines.train", "core"),
        ("pipelines.register", "core"),
        ("pipelines.package",),
    ):
        done = stage(*command, cwd=checkout)
        assert done.returncode == 1, command
        (line,) = done.stderr.splitlines()
        assert line.startswith("error: "), command
        assert "Read-only file system" in line or "not found" in line, line
    assert sorted(read_only.rglob("*")) == before
    assert (read_only / "index/kept").read_text() == "kept"


# -- a clock that jumps -----------------------------------------------------------------


def test_the_newest_is_told_without_the_clock(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_phase(checkout, seed=0, mrr=0.4)
    register("core")
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() - YEAR_S)
    write_phase(checkout, seed=1, mrr=0.5)
    assert register("core") | {"reason": "", "run_id": ""} == {
        **read_json(checkout / "artifacts/registry/core.json"),
        **{"version": "2", "alias": "champion", "champion": "2", "reason": "", "run_id": ""},
    }
    assert _registry.champions(configure(), "iwm") == ["1", "2"]
    # Bentos: the one that was kept last is the latest, whatever its date.
    for number, tag in enumerate(("iwm:b", "iwm:a")):
        built = _bentos.place(tag, tmp_path / "built")
        built.mkdir(parents=True)
        (built / "bento.yaml").write_text(f"creation_time: {2026 - number}-01-01")
        _bentos.keep(tag, tmp_path / "built")
    assert (_bentos.home() / "bentos/iwm/latest").read_text() == "a"
    assert {path.name for path in _bentos.home().iterdir()} == {"bentos"}


# -- DVC's own files --------------------------------------------------------------------


def test_what_a_kill_does_to_dvcs_files_is_mended(tmp_path: Path) -> None:
    tmp = tmp_path / ".dvc/tmp"
    tmp.mkdir(parents=True)
    assert mend(tmp_path) == []
    lock = tmp / "rwlock"
    lock.write_text('{"write": {"/x": {"pid')
    assert mend(tmp_path) == [f"{lock}: damaged; removed"]
    # The number of a dead DVC process, which another program has now.
    other = {"pid": os.getppid() if os.getppid() > 1 else 1, "cmd": "dvc repro"}
    lock.write_text(json.dumps({"write": {"/x": other}, "read": {"/y": [other]}}))
    assert mend(tmp_path) == [f"{lock}: held by processes that are gone; freed"]
    assert json.loads(lock.read_text()) == {"read": {}, "write": {}}
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", "dvc"]) as live:
        held = {"write": {"/x": {"pid": live.pid, "cmd": "dvc repro"}}, "read": {}}
        write_json(lock, held)
        assert mend(tmp_path) == []
        assert read_json(lock) == held
        live.kill()
    assert len(mend(tmp_path)) == 1

    good = (ROOT / "data.dvc").read_text()
    for name in ("dvc.lock", "data.dvc"):
        for broken in ("", "outs:\n- md5: 1", "stages:\n  ingest:\n    cmd", "\x00\x00"):
            (tmp_path / name).write_text(broken)
            assert mend(tmp_path) == [f"{tmp_path / name}: damaged; put aside as {name}.damaged"], (
                broken
            )
            assert not (tmp_path / name).exists()
    (tmp_path / "data.dvc").write_text(good)
    assert mend(tmp_path) == []

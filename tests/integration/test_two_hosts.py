"""Two hosts, a Dask worker on each: ingestion, sharding and training over both; a link cut.

The hosts are network namespaces of this machine, see :mod:`twohosts`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml
from twohosts import Host, cannot, reads, two_hosts

from iwm.gameplay.config import RecordConfig, RecordPlan
from iwm.gameplay.record import record
from iwm.training.tracking import read_history

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

ROOT = Path(__file__).parents[2]
PORT = 8786
FRAMES = 2500
PLANS = tuple(
    RecordPlan(
        name=name, source="procedural", game="sprites", frames=FRAMES, frame_skip=1,
        width=64, height=64, max_episode_steps=40,
    )
    for name in ("one", "two")
)  # fmt: skip
SHAPE = {"width": 32, "depth": 1, "heads": 2}
RUN = {
    "model": {"encoder": {"patch": 16, **SHAPE}, "predictor": {**SHAPE, "dropout": 0.0}},
    "epochs": 100,
    "max_steps": 40,
    "batch_size": 16,
    "checkpoint_every": 5,
    "log_every": 1,
}
TINY = {
    "ingest": {"executor": "dask"},
    "shard": {"executor": "dask", "frames_per_shard": 500},
    "train": {"core": RUN, "equivariant": {**RUN, "max_steps": 10}},
}
# A cut link is noticed after this long; 11 s is the least that Dask takes.
ENVIRON = {
    "DASK_DISTRIBUTED__COMM__TIMEOUTS__TCP": "12s",
    "DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "5s",
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
}
BOUND_S = 240.0
"""No run may take longer to say that a host is gone."""


@pytest.fixture
def hosts() -> Iterator[tuple[Host, Host]]:
    if (reason := cannot()) is not None:
        pytest.skip(reason)
    with two_hosts() as made:
        yield made


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recorded") / "data"
    record(folder, RecordConfig(plans=PLANS, workers=2))
    return folder


@pytest.fixture
def work(tmp_path: Path, data: Path) -> Path:
    """A working tree that both hosts see."""
    folder = tmp_path / "work"
    folder.mkdir()
    shutil.copytree(data, folder / "data")
    (folder / "pipelines").symlink_to(ROOT / "pipelines")
    use(folder, TINY)
    return folder


def use(folder: Path, changes: dict[str, object]) -> None:
    """Write params.yaml: the smoke profile and changes to it."""
    from iwm.config import merge, resolve_profile

    values = merge(resolve_profile("smoke", profiles=ROOT / "profiles.yaml", environ={}), changes)
    (folder / "params.yaml").write_text(yaml.safe_dump(values))


@dataclass
class Cluster:
    """A scheduler on the first host and a worker on each, started again as systemd would."""

    hosts: tuple[Host, Host]
    cwd: Path
    log: Path
    workers: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def address(self) -> str:
        return f"tcp://{self.hosts[0].address}:{PORT}"

    @property
    def environ(self) -> dict[str, str]:
        return {**ENVIRON, "DASK_SCHEDULER_ADDRESS": self.address}

    def begin(self) -> None:
        one = self.hosts[0]
        words = ["scheduler", "--host", one.address, "--port", str(PORT), "--no-dashboard"]
        one.start("-m", "dask", *words, cwd=self.cwd, log=self.log, environ=ENVIRON)
        for host in self.hosts:
            self.work_on(host)

    def work_on(self, host: Host) -> None:
        words = ["worker", self.address, "--host", host.address, "--no-dashboard"]
        words += ["--nworkers", "1", "--nthreads", "1", "--local-directory", str(self.cwd.parent)]
        self.workers[host.namespace] = host.start(
            "-m", "dask", *words, cwd=self.cwd.parent, log=self.log, environ=ENVIRON
        )


@pytest.fixture
def cluster(hosts: tuple[Host, Host], work: Path) -> Cluster:
    made = Cluster(hosts, work, work.parent / "dask.log")
    made.begin()
    return made


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def until(condition: Callable[[], bool], patience_s: float = 240.0) -> None:
    deadline = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def one_line(said: str) -> str:
    """The only line that says what went wrong."""
    lines = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, said
    assert "Traceback" not in said, said
    return lines[0]


@pytest.fixture(scope="module")
def expected(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Index, shards and loss curve as one process on one machine makes them."""
    folder = tmp_path_factory.mktemp("alone")
    (folder / "data").symlink_to(data)
    (folder / "pipelines").symlink_to(ROOT / "pipelines")
    use(folder, {**TINY, "ingest": {"executor": "serial"}, "shard": {"frames_per_shard": 500}})
    for stage in (["ingest"], ["shard"], ["train", "core"]):
        done = subprocess.run(
            [sys.executable, "-m", f"pipelines.{stage[0]}", *stage[1:]],
            cwd=folder, env={**os.environ, **ENVIRON}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    return folder


def same_curve(one: Path, two: Path) -> None:
    a, b = (read_history(folder / "artifacts/models/core/history.jsonl") for folder in (one, two))
    assert [row["step"] for row in a] == [row["step"] for row in b]
    assert [row["loss"] for row in b] == pytest.approx([row["loss"] for row in a], abs=1e-4)


def same_shards(one: Path, two: Path) -> None:
    assert contents(one / "artifacts/index") == contents(two / "artifacts/index")
    assert contents(one / "artifacts/shards") == contents(two / "artifacts/shards")


def checkout(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A copy of this checkout without data; what its programs are told to use two hosts."""
    from pipelines import _copy

    monkeypatch.chdir(ROOT)
    _copy.copy_checkout(folder)
    for name in ("data.dvc", "dvc.lock"):
        (folder / name).unlink(missing_ok=True)
    return {
        "IWM_NODES": "2",
        "PYTHONPATH": f"{folder / 'src'}{os.pathsep}{folder}",
        "BENTOML_HOME": str(folder / ".bentoml"),
    }


def test_the_graph_runs_over_both_hosts(
    cluster: Cluster, work: Path, expected: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`dvc repro`: ingest and shard by both hosts' workers, each training in two processes."""
    clone = work.parent / "clone"
    environ = {**cluster.environ, **checkout(clone, monkeypatch)}
    shutil.copytree(work / "data", clone / "data")
    shutil.copy2(work / "params.yaml", clone)
    one = cluster.hosts[0]
    targets = ("evaluate@core", "train@equivariant")
    for words in (["add", "-q", "data"], ["repro", *targets]):
        done = one.run("-m", "dvc", *words, cwd=clone, environ=environ)
        assert done.returncode == 0, done.stdout + done.stderr
    same_shards(expected, clone)
    same_curve(expected, clone)
    assert (clone / "artifacts/models/equivariant/training.json").exists()
    assert (clone / "reports/metrics/core.json").exists()
    # Where the work runs is not what is made: one host finds nothing to do.
    shutil.copy2(expected / "params.yaml", clone)
    done = one.run("-m", "dvc", "repro", *targets, cwd=clone, environ=ENVIRON)
    assert "Running stage" not in done.stdout, done.stdout


@pytest.mark.timeout(7200)
def test_the_whole_graph_runs_over_both_hosts(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The smoke profile from recording to packages: every family trained, gated, registered."""
    clone = tmp_path / "clone"
    environ = {**cluster.environ, **checkout(clone, monkeypatch)}
    use(clone, {"ingest": {"executor": "dask"}, "shard": {"executor": "dask"}})
    one, two = cluster.hosts
    done = one.run("-m", "pipelines.record", cwd=clone, environ=environ)
    assert done.returncode == 0, done.stderr
    log = tmp_path / "repro.log"
    run = one.start("-m", "dvc", "repro", cwd=clone, log=log, environ=environ)
    elsewhere = set[str]()
    while run.poll() is None:
        elsewhere |= {phase for pid in two.processes() if (phase := training(pid))}
        time.sleep(0.5)
    assert run.wait() == 0, log.read_text()
    stages = yaml.safe_load((clone / "dvc.yaml").read_text())["stages"]
    assert elsewhere == set(stages["train"]["foreach"])
    gates = {file.stem for file in (clone / "reports/gates").glob("*.json")}
    assert gates == set(stages["gate"]["matrix"]["phase"])
    assert (clone / "artifacts/package.json").exists()
    done = one.run("-m", "dvc", "repro", cwd=clone, environ=environ)
    assert "up to date" in done.stdout, done.stdout + done.stderr


def test_each_host_started_by_hand(hosts: tuple[Host, Host], work: Path, expected: Path) -> None:
    shutil.copytree(expected / "artifacts/shards", work / "artifacts/shards")
    one, two = hosts
    words = ["-m", "pipelines.train", "core", "--nodes", "2", "--head", f"{one.address}:29511"]
    other = two.start(*words, cwd=work, log=work.parent / "two.log", environ=ENVIRON)
    done = one.run(*words, cwd=work, environ=ENVIRON)
    assert done.returncode == 0, done.stderr
    assert other.wait(60) == 0, (work.parent / "two.log").read_text()
    same_curve(expected, work)


def test_a_worker_is_cut_off_in_the_middle_of_ingestion(
    cluster: Cluster, work: Path, expected: Path
) -> None:
    one, two = cluster.hosts
    log = work.parent / "ingest.log"
    run = one.start("-m", "pipelines.ingest", cwd=work, log=log, environ=cluster.environ)
    worker = cluster.workers[two.namespace].pid
    until(lambda: reads(worker, "frames.mkv"))
    two.link("down")
    assert run.wait(BOUND_S) == 0, log.read_text()  # the other worker did its part
    done = one.run("-m", "pipelines.shard", cwd=work, environ=cluster.environ)
    assert done.returncode == 0, done.stderr
    same_shards(expected, work)


def test_the_stage_itself_is_cut_off_from_the_cluster(
    cluster: Cluster, work: Path, expected: Path
) -> None:
    one, two = cluster.hosts
    log = work.parent / "ingest.log"
    run = two.start("-m", "pipelines.ingest", cwd=work, log=log, environ=cluster.environ)
    until(lambda: reads(cluster.workers[one.namespace].pid, "frames.mkv"))
    two.link("down")
    assert run.wait(BOUND_S) == 75
    assert "lost the Dask scheduler at tcp://10.77.0.1:8786" in one_line(log.read_text())
    assert not (work / "artifacts/index/recordings.json").exists()
    two.link("up")
    for stage in ("ingest", "shard"):
        done = two.run("-m", f"pipelines.{stage}", cwd=work, environ=cluster.environ)
        assert done.returncode == 0, done.stderr
    same_shards(expected, work)


def test_a_host_is_cut_off_in_the_middle_of_training(
    cluster: Cluster, work: Path, expected: Path
) -> None:
    shutil.copytree(expected / "artifacts/shards", work / "artifacts/shards")
    one, two = cluster.hosts
    log, history = work.parent / "train.log", work / "artifacts/models/core/history.jsonl"
    nodes = {**cluster.environ, "IWM_NODES": "2"}
    run = one.start("-m", "pipelines.train", "core", cwd=work, log=log, environ=nodes)
    until(lambda: history.exists() and len(read_history(history)) > 7)
    two.link("down")
    assert run.wait(BOUND_S) == 75
    assert "lost" in one_line(log.read_text())
    assert not (work / "artifacts/models/core/training.json").exists()
    # No process of the training is left on either host; the scheduler and its workers are.
    until(lambda: not [pid for host in cluster.hosts for pid in host.processes() if training(pid)])
    two.link("up")
    cluster.workers[two.namespace].wait(BOUND_S)
    cluster.work_on(two)  # as systemd does
    until(lambda: len(cluster_workers(cluster)) == 2)
    done = one.run("-m", "pipelines.train", "core", cwd=work, environ=nodes)
    assert done.returncode == 0, done.stderr
    assert "going on from step" in done.stdout
    same_curve(expected, work)


def test_hosts_started_by_hand_lose_each_other(
    hosts: tuple[Host, Host], work: Path, expected: Path
) -> None:
    shutil.copytree(expected / "artifacts/shards", work / "artifacts/shards")
    one, two = hosts
    history = work / "artifacts/models/core/history.jsonl"
    words = ["-m", "pipelines.train", "core", "--nodes", "2", "--head", f"{one.address}:29511"]
    logs = [work.parent / f"{name}.log" for name in "ab"]
    patience = {**ENVIRON, "IWM_PATIENCE_S": "45"}  # above the time that a process takes to start
    runs = [
        host.start(*words, cwd=work, log=log, environ=patience)
        for host, log in zip(hosts, logs, strict=True)
    ]
    until(lambda: history.exists() and len(read_history(history)) > 7)
    two.link("down")
    assert [run.wait(BOUND_S) for run in runs] == [75, 75]
    for log in logs:
        assert "run it again on all hosts" in one_line(log.read_text())
    two.link("up")
    other = two.start(*words, cwd=work, log=logs[1], environ=ENVIRON)
    done = one.run(*words, cwd=work, environ=ENVIRON)
    assert (done.returncode, other.wait(60)) == (0, 0), done.stderr
    assert "going on from step" in done.stdout
    same_curve(expected, work)


def training(process: int) -> str | None:
    """The phase that a process trains."""
    try:
        words = Path(f"/proc/{process}/cmdline").read_bytes().decode().split("\0")
    except OSError:
        return None
    return words[words.index("pipelines.train") + 1] if "pipelines.train" in words else None


def cluster_workers(cluster: Cluster) -> list[str]:
    code = (
        "from distributed import Client; import json;"
        f"print(json.dumps(sorted(Client('{cluster.address}').nthreads())))"
    )
    done = cluster.hosts[0].run("-c", code, cwd=cluster.cwd, environ=ENVIRON, timeout=60)
    assert done.returncode == 0, done.stderr
    found: list[str] = json.loads(done.stdout.splitlines()[-1])
    return found

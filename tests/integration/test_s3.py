"""A real S3 protocol server on loopback behind DVC, MLflow's artifacts and the shard reader."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fixtures import write_store
from tinymodel import write_phase

from iwm.data.streaming import StreamingLoader
from iwm.errors import DataError
from pipelines._champion import required_champion
from pipelines._served import free_port
from pipelines.register import register

pytestmark = pytest.mark.slow

BUCKET = "iwm"


def serve(url: str, command: list[str], folder: Path) -> subprocess.Popen[bytes]:
    """Start a server and wait until it answers."""
    with (folder / "server.log").open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    deadline = time.monotonic() + 240
    while True:
        try:
            httpx.get(url, timeout=5)
            return server
        except httpx.TransportError:
            said = (folder / "server.log").read_text(errors="replace")[-2000:]
            assert server.poll() is None, said
            assert time.monotonic() < deadline, said
            time.sleep(0.2)


def stop(server: subprocess.Popen[bytes]) -> None:
    os.killpg(server.pid, signal.SIGKILL)
    server.wait()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    url = f"http://127.0.0.1:{(port := free_port())}"
    program = ["-c", "from moto.server import main; main()", "-H", "127.0.0.1", "-p", str(port)]
    process = serve(url, [sys.executable, *program], tmp_path_factory.mktemp("s3"))
    yield url
    stop(process)


@pytest.fixture
def bucket(server: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A client of an empty bucket; the environment points everything at the server."""
    for name, value in {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": server,
        "AWS_EC2_METADATA_DISABLED": "true",
        "MLFLOW_S3_ENDPOINT_URL": server,
    }.items():
        monkeypatch.setenv(name, value)
    import boto3

    httpx.post(f"{server}/moto-api/reset")
    client = boto3.client("s3", endpoint_url=server)
    client.create_bucket(Bucket=BUCKET)
    return client


def keys(client: Any, prefix: str) -> list[str]:
    found = client.list_objects_v2(Bucket=BUCKET, Prefix=prefix)
    return [entry["Key"] for entry in found.get("Contents", [])]


def test_dvc_pushes_and_pulls_the_data(
    bucket: Any, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data/one").mkdir(parents=True)
    content = os.urandom(300_000)
    (tmp_path / "data/one/frames.mkv").write_bytes(content)

    def dvc(*arguments: str) -> None:
        command = [sys.executable, "-m", "dvc", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    subprocess.run(["git", "init", "-q"], check=True)
    dvc("init", "-q")
    dvc("remote", "add", "-d", "store", f"s3://{BUCKET}/dvc")
    dvc("remote", "modify", "store", "endpointurl", server)
    dvc("add", "-q", "data")
    dvc("push", "-q")
    assert keys(bucket, "dvc/")
    shutil.rmtree(tmp_path / "data")
    shutil.rmtree(tmp_path / ".dvc/cache")
    dvc("pull", "-q")
    assert (tmp_path / "data/one/frames.mkv").read_bytes() == content


def test_the_registry_keeps_its_files_there(
    bucket: Any, checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"http://127.0.0.1:{(port := free_port())}"
    command = ["server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    stores = [
        *("--backend-store-uri", f"sqlite:///{checkout / 'mlruns/mlflow.db'}"),
        *("--artifacts-destination", f"s3://{BUCKET}/mlflow"),
    ]
    process = serve(f"{url}/health", [sys.executable, "-m", "mlflow", *command, *stores], checkout)
    try:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", url)
        digest = write_phase(checkout)
        assert register("core")["alias"] == "champion"
        assert any(key.endswith("model.safetensors") for key in keys(bucket, "mlflow/"))
        card = required_champion("iwm", "core", checkout / "fetched")
        assert card["weights_sha256"] == digest
    finally:
        stop(process)


def test_shards_are_streamed_from_there(bucket: Any, tmp_path: Path) -> None:
    write_store(tmp_path / "shards")
    for path in sorted((tmp_path / "shards").iterdir()):
        bucket.upload_file(str(path), BUCKET, f"shards/{path.name}")

    def frames(base: str) -> list[Any]:
        loader = StreamingLoader(base, "train", 8, seed=0, buffer=0)
        return [batch.images.numpy() for batch in loader.epoch(0)]

    far, near = frames(f"s3://{BUCKET}/shards"), frames(str(tmp_path / "shards"))
    assert len(far) == len(near) > 1
    assert all(np.array_equal(one, other) for one, other in zip(far, near, strict=True))
    with pytest.raises(DataError, match="nothing-here"):
        frames(f"s3://{BUCKET}/nothing-here")

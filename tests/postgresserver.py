"""A PostgreSQL server of our own, on loopback, with its files in a temporary folder."""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipelines._served import free_port


@contextmanager
def postgres_server() -> Iterator[str]:
    """``user@host:port`` of an empty server; skips the test where none is installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found:
        pytest.skip("no PostgreSQL server on this machine (initdb not found)")
    # pytest's own temporary folders are closed to the user that the server runs as.
    bin_folder, data = found[-1].parent, Path(tempfile.mkdtemp(prefix="iwm-postgres-"))
    # PostgreSQL refuses to run as root.
    as_user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    if as_user:
        shutil.chown(data, "postgres")
    user = "postgres" if as_user else getpass.getuser()
    subprocess.run(
        [*as_user, bin_folder / "initdb", "-D", data / "db", "-A", "trust", "-U", user],
        check=True,
        capture_output=True,
    )
    port = free_port()
    server = subprocess.Popen(
        [*as_user, bin_folder / "postgres", "-D", data / "db", "-p", str(port), "-k", data],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        import psycopg

        deadline = time.monotonic() + 30
        while True:
            try:
                psycopg.connect(host="127.0.0.1", port=port, user=user, dbname="postgres").close()
                break
            except psycopg.OperationalError:
                assert server.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.1)
        yield f"{user}@127.0.0.1:{port}"
    finally:
        os.killpg(server.pid, signal.SIGINT)
        server.wait(30)
        shutil.rmtree(data, ignore_errors=True)

"""Streaming: the same samples as by index, and what it refuses."""

from __future__ import annotations

import io
import shutil
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from iwm.data.loader import Loader
from iwm.data.reader import ShardStore
from iwm.data.streaming import PICKLE_EXTENSIONS, StreamingLoader, check_url
from iwm.errors import ConfigError, DataError


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def url(tiny_shards: Path) -> Iterator[str]:
    handler = partial(_Quiet, directory=str(tiny_shards))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_in_order_it_gives_what_the_index_gives(tiny_store: ShardStore, url: str) -> None:
    for place in (str(tiny_store.folder), url):
        streamed = list(StreamingLoader(place, "val", 16, buffer=0).epoch(0))
        expected = list(Loader(tiny_store, "val", 16, shuffle=False).epoch(0))
        assert len(streamed) == len(expected) == 6
        for left, right in zip(streamed, expected, strict=True):
            assert left.keys == right.keys
            for name in ("images", "action", "reward", "done", "recording", "episode", "step"):
                assert torch.equal(getattr(left, name), getattr(right, name)), name


def test_shuffled_epochs_differ_and_repeat(tiny_shards: Path) -> None:
    loader = StreamingLoader(str(tiny_shards), "train", 32, buffer=64)

    def keys(epoch: int) -> list[str]:
        return [key for batch in loader.epoch(epoch) for key in batch.keys]

    assert keys(0) == keys(0)
    assert keys(0) != keys(1)
    assert len(set(keys(0))) == 288


def test_ranks_share_the_tars(tiny_shards: Path, tiny_store: ShardStore) -> None:
    seen = [
        key
        for rank in range(2)
        for batch in StreamingLoader(str(tiny_shards), "train", 1, rank=rank, world=2).epoch(0)
        for key in batch.keys
    ]
    assert sorted(seen) == sorted(tiny_store.keys(tiny_store.rows("train")))
    with pytest.raises(DataError, match="2 tars for 3 ranks"):
        StreamingLoader(str(tiny_shards), "val", 1, world=3)


@pytest.mark.parametrize(
    "address", ["pipe:touch hacked", "PIPE:x", "ftp://host/x", "exec://x", "reference://x"]
)
def test_only_plain_locations_are_opened(address: str) -> None:
    with pytest.raises(ConfigError, match="URLs are not opened"):
        check_url(address)
    with pytest.raises(ConfigError, match="URLs are not opened"):
        StreamingLoader(address, "train", 1)


@pytest.mark.parametrize("extension", PICKLE_EXTENSIONS)
def test_members_that_could_run_code_are_refused(
    tiny_shards: Path, tmp_path: Path, extension: str
) -> None:
    folder = Path(shutil.copytree(tiny_shards, tmp_path / "shards"))
    with tarfile.open(folder / "test-000000.tar", "a") as tar:
        member = tarfile.TarInfo(f"one/000004/000000.{extension.upper()}")
        member.size = 4
        tar.addfile(member, io.BytesIO(b"\x80\x04N."))
    with pytest.raises(DataError, match=r"test-000000.tar: .* are refused"):
        list(StreamingLoader(str(folder), "test", 8).epoch(0))


def test_missing_and_broken_tars_are_one_line(tiny_shards: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_shards, tmp_path / "shards"))
    (folder / "val-000000.tar").write_bytes((folder / "val-000000.tar").read_bytes()[:20_000])
    with pytest.raises(DataError) as caught:
        list(StreamingLoader(str(folder), "val", 1, buffer=0).epoch(0))
    assert "val-000000.tar" in str(caught.value)
    assert "\n" not in str(caught.value)
    (folder / "val-000000.tar").unlink()
    with pytest.raises(DataError, match=r"val-000000\.tar"):
        list(StreamingLoader(str(folder), "val", 1, buffer=0).epoch(0))
    with pytest.raises(DataError, match=r"shards\.json"):
        StreamingLoader(str(tmp_path / "nothing"), "val", 1)

"""Reading by index: threads, processes, damage."""

from __future__ import annotations

import multiprocessing
import pickle
import shutil
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from fixtures import ACTIONS, episode_frames, write_store

import iwm.data.reader
from iwm.data.reader import ShardStore
from iwm.errors import DataError


@pytest.fixture
def own(tiny_shards: Path, tmp_path: Path) -> Path:
    """A copy of the tiny shards to damage."""
    return Path(shutil.copytree(tiny_shards, tmp_path / "shards"))


def test_pictures_are_those_that_were_written(tiny_store: ShardStore) -> None:
    frames, _ = episode_frames(0, 24, 64)
    decoded = tiny_store.decode(tiny_store.rows("train", ["one"])[:24])
    assert decoded.shape == (24, 64, 64, 3)
    assert np.abs(decoded.astype(int) - frames).mean() < 4  # JPEG


def test_any_order_repeats_and_a_given_place(tiny_store: ShardStore) -> None:
    rows = np.array([470, 3, 3, 100])
    out = np.empty((4, 64, 64, 3), np.uint8)
    assert tiny_store.decode(rows, out) is out
    for place, row in enumerate(rows):
        np.testing.assert_array_equal(out[place], tiny_store.decode(np.array([row]))[0])


def test_vocabulary(tiny_store: ShardStore) -> None:
    assert tiny_store.vocabulary("two") == ACTIONS
    with pytest.raises(DataError, match="no recording 'three'; it has one, two"):
        tiny_store.vocabulary("three")


def test_actions_in_another_vocabulary(tiny_store: ShardStore) -> None:
    assert tiny_store.all_actions() == ACTIONS
    own = tiny_store.actions()
    turned = tiny_store.actions([*reversed(ACTIONS), "jump"])
    np.testing.assert_array_equal(turned[own >= 0], len(ACTIONS) - 1 - own[own >= 0])
    np.testing.assert_array_equal(turned < 0, own < 0)
    only = tiny_store.actions(ACTIONS, ["two"])
    assert (only[tiny_store.recording_ids == 0] == -1).all()
    with pytest.raises(DataError, match=rf"one has the action {ACTIONS[1]!r}.*lacks: up, dive"):
        tiny_store.actions(["up", "dive", ACTIONS[0]])


def test_an_empty_split_says_so(tmp_path: Path) -> None:
    write_store(tmp_path / "s", episodes=2, steps=3, splits=("train",))
    with pytest.raises(DataError, match="the split val is empty"):
        ShardStore(tmp_path / "s").rows("val")
    with pytest.raises(DataError, match="no split 'dev'"):
        ShardStore(tmp_path / "s").rows("dev")


def test_threads_share_a_store_with_few_descriptors(
    tiny_shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(iwm.data.reader, "MAX_OPEN_FILES", 1)
    store = ShardStore(tiny_shards)
    expected = store.read(np.arange(len(store)))
    orders = [np.random.default_rng(seed).permutation(len(store)) for seed in range(8)]
    with ThreadPoolExecutor(8) as pool:
        for order, found in zip(orders, pool.map(store.read, orders), strict=True):
            assert found == [expected[row] for row in order]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_share_a_store(tiny_shards: Path, method: str) -> None:
    store = ShardStore(tiny_shards)
    rows = np.arange(0, len(store), 7)
    expected = store.read(rows)
    context = multiprocessing.get_context(method)
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        assert pool.submit(store.read, rows).result() == expected
    assert pickle.loads(pickle.dumps(store)).read(rows) == expected


def test_a_missing_shard_is_found_at_once(own: Path) -> None:
    (own / "val-000000.tar").unlink()
    with pytest.raises(DataError, match=r"val-000000.tar: the shard is missing"):
        ShardStore(own)


def test_a_truncated_shard_is_found_at_once_or_when_read(own: Path) -> None:
    store = ShardStore(own)
    path = own / "val-000000.tar"
    with path.open("r+b") as stream:
        stream.truncate(2000)
    with pytest.raises(DataError, match=r"val-000000.tar: one/.*: cut short"):
        store.read(store.rows("val"))
    with pytest.raises(DataError, match=r"val-000000.tar: has 2000 bytes instead of"):
        ShardStore(own)


def test_a_damaged_image_names_shard_and_key(own: Path) -> None:
    store = ShardStore(own)
    row = store.rows("test")[5]
    values = store.table.slice(row, 1).to_pylist()[0]
    with (own / values["shard"]).open("r+b") as stream:
        stream.seek(values["offset"])
        stream.write(b"\0" * 200)
    with pytest.raises(DataError) as caught:
        store.decode(store.rows("test"))
    assert values["shard"] in str(caught.value)
    assert values["key"] in str(caught.value)
    assert "damaged image" in str(caught.value)


def test_an_index_newer_than_the_software_is_refused(own: Path) -> None:
    table = pq.read_table(own / "index.parquet")
    newer = table.replace_schema_metadata({b"iwm.shards.version": b"7"})
    pq.write_table(newer, own / "index.parquet")
    with pytest.raises(DataError, match=r"index.parquet: version 7 is newer"):
        ShardStore(own)
    pq.write_table(table.slice(1), own / "index.parquet")
    with pytest.raises(DataError, match=r"has 479 rows where .* counts 480"):
        ShardStore(own)
    (own / "index.parquet").write_bytes(b"junk")
    with pytest.raises(DataError, match=r"index.parquet: not an index"):
        ShardStore(own)


def test_a_shard_elsewhere_is_refused(own: Path) -> None:
    path = own / "shards.json"
    path.write_text(path.read_text().replace('"val-000000.tar"', '"../val-000000.tar"'))
    with pytest.raises(DataError, match="nowhere else"):
        ShardStore(own)

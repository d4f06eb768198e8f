"""Shards on disk: bytes, layout, and what webdataset makes of them."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fixtures import ACTIONS, episode_frames, write_store
from PIL import Image

from iwm.data.config import ShardConfig
from iwm.data.frames import decoder, encode_frame, resize_frame
from iwm.data.reader import ShardStore
from iwm.data.shard_plan import read_usable_frames
from iwm.data.shards import read_shard_set
from iwm.errors import DataError
from iwm.gameplay.index import INDEX_SCHEMA


def test_writing_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_store(tmp_path / name, episodes=5, steps=6)
    names = sorted(file.name for file in (tmp_path / "a").iterdir())
    assert names == [
        "index.parquet", "shards.json", "test-000000.tar", "train-000000.tar", "val-000000.tar",
    ]  # fmt: skip
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_sample_is_an_image_and_its_step(tiny_shards: Path) -> None:
    with tarfile.open(tiny_shards / "train-000000.tar") as tar:
        members = tar.getmembers()
        assert [member.name for member in members[:2]] == [
            "one/000000/000000.jpg", "one/000000/000000.json",
        ]  # fmt: skip
        assert {(m.mtime, m.uid, m.gid, m.uname, m.mode) for m in members} == {(0, 0, 0, "", 0o444)}
        step = json.loads(tar.extractfile(members[1]).read())  # type: ignore[union-attr]
    _, actions = episode_frames(0, 24, 64)
    assert step == {
        "recording": "one", "episode": 0, "step": 0, "time_s": 0.0, "action": actions[0],
        "reward": 0.0, "done": False, "split": "train",
    }  # fmt: skip


def test_the_index_names_the_place_of_every_image(tiny_store: ShardStore) -> None:
    for row in range(0, len(tiny_store), 17):
        values = tiny_store.table.slice(row, 1).to_pylist()[0]
        with tarfile.open(tiny_store.folder / values["shard"]) as tar:
            member = tar.getmember(f"{values['key']}.jpg")
        assert (member.offset_data, member.size) == (values["offset"], values["size"])


def test_tars_hold_one_split_each_and_no_more_than_asked(tiny_store: ShardStore) -> None:
    info = tiny_store.info
    assert max(file.frames for file in info.shards) == 50
    assert info.frames == {"train": 288, "val": 96, "test": 96}
    assert info.episodes == {"train": 12, "val": 4, "test": 4}
    table = tiny_store.table
    for split, shard in zip(table["split"].to_pylist(), table["shard"].to_pylist(), strict=True):
        assert shard.startswith(f"{split}-")
    assert info.recordings["one"].actions == ACTIONS


def test_webdataset_reads_them_as_its_own(tiny_store: ShardStore) -> None:
    import webdataset

    urls = [str(tiny_store.folder / f.name) for f in tiny_store.info.shards if f.split == "val"]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False))
    rows = tiny_store.rows("val")
    assert [sample["__key__"] for sample in samples] == tiny_store.keys(rows)
    assert [sample["jpg"] for sample in samples] == tiny_store.read(rows)


def test_long_and_foreign_names_are_kept(tmp_path: Path) -> None:
    name = "запись." + 80 * "x"
    write_store(tmp_path / "s", recordings=(name,), episodes=5, steps=2)
    store = ShardStore(tmp_path / "s")
    assert store.decode(np.arange(len(store))).shape == (10, 64, 64, 3)
    assert store.keys(np.array([0])) == [f"{name}/000000/000000"]


def test_a_name_that_webdataset_would_skip_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot begin with"):
        write_store(tmp_path / "s", recordings=("__meta__",), episodes=1)
    assert not list(tmp_path.iterdir())


def test_png_gives_back_the_very_pixels(tmp_path: Path) -> None:
    cfg = ShardConfig(format="png", width=32, height=32)
    write_store(tmp_path / "s", cfg, episodes=5, steps=3)
    store = ShardStore(tmp_path / "s")
    frames, _ = episode_frames(0, 3, 32)
    np.testing.assert_array_equal(store.decode(store.rows("train", ["one"])[:3]), frames)


def test_resize_keeps_the_whole_frame_and_crop_its_aspect() -> None:
    image = np.zeros((60, 120, 3), np.uint8)
    image[:, :30], image[:, 90:] = (255, 0, 0), (0, 0, 255)
    whole = resize_frame(image, ShardConfig(width=40, height=40))
    assert whole[20, 2].tolist() == [255, 0, 0]
    assert whole[20, 37].tolist() == [0, 0, 255]
    centre = resize_frame(image, ShardConfig(width=40, height=40, fit="crop"))
    assert centre[:, 3:37].max() == 0
    same = resize_frame(image, ShardConfig(width=120, height=60))
    np.testing.assert_array_equal(same, image)


def test_resize_is_antialiased() -> None:
    checkers = np.indices((256, 256)).sum(0) % 2 * 255
    image = np.repeat(checkers[..., None], 3, -1).astype(np.uint8)
    small = resize_frame(image, ShardConfig(width=32, height=32)).astype(int)
    assert abs(small - 128).max() <= 3


def test_only_the_named_format_is_decoded() -> None:
    image = np.zeros((8, 8, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "GIF")
    for data in (stream.getvalue(), b"", b"junk"):
        for image_format in ("jpeg", "png"):
            with pytest.raises(ValueError):
                decoder(image_format, (8, 8, 3))(data, image)
    larger = encode_frame(np.zeros((16, 16, 3), np.uint8), ShardConfig())
    with pytest.raises(ValueError):
        decoder("jpeg", (8, 8, 3))(larger, image)
    smaller = encode_frame(np.zeros((4, 4, 3), np.uint8), ShardConfig())
    with pytest.raises(ValueError, match="4x4"):
        decoder("jpeg", (8, 8, 3))(smaller, image)


def test_a_full_disk_is_one_line_and_leaves_the_old_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_store(tmp_path / "s", episodes=5, steps=2)
    before = (tmp_path / "s" / "train-000000.tar").read_bytes()

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tarfile.TarFile, "addfile", full)
    with pytest.raises(DataError, match="cannot write the shards: No space left on device"):
        write_store(tmp_path / "s", episodes=5, steps=3)
    assert [file.name for file in tmp_path.iterdir()] == ["s"]
    assert (tmp_path / "s" / "train-000000.tar").read_bytes() == before


def test_newer_and_broken_descriptions_are_refused(tmp_path: Path) -> None:
    write_store(tmp_path, episodes=5, steps=2)
    path = tmp_path / "shards.json"
    good = json.loads(path.read_text())
    path.write_text(json.dumps({**good, "version": 99}))
    with pytest.raises(DataError, match=r"shards.json: version 99 is newer.*upgrade"):
        read_shard_set(tmp_path)
    path.write_text(json.dumps({**good, "format": "webp"}))
    with pytest.raises(DataError, match="format"):
        read_shard_set(tmp_path)
    path.write_text("{")
    with pytest.raises(DataError, match="not JSON"):
        read_shard_set(tmp_path)
    path.unlink()
    with pytest.raises(DataError, match="run `iwm shard`"):
        ShardStore(tmp_path)


def _write_index(folder: Path, table: pa.Table) -> None:
    (folder / "frames").mkdir(parents=True)
    (folder / "recordings.json").write_text("{}")
    pq.write_table(table, folder / "frames" / "one.parquet")


def test_no_usable_frame_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no index there"):
        read_usable_frames(tmp_path / "nothing")
    _write_index(tmp_path / "index", INDEX_SCHEMA.empty_table())
    with pytest.raises(DataError, match="no frame in it is usable"):
        read_usable_frames(tmp_path / "index")


def test_an_index_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    table = INDEX_SCHEMA.with_metadata({b"iwm.index.version": b"9"}).empty_table()
    _write_index(tmp_path / "index", table)
    with pytest.raises(DataError, match=r"one.parquet: version 9 is newer"):
        read_usable_frames(tmp_path / "index")

"""Bits that change on the disk: an index is what was written, or an error names the file."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from iwm.data.config import ValidateConfig
from iwm.data.expectations import validate_index
from iwm.data.reader import ShardStore
from iwm.data.shard_plan import read_usable_frames
from iwm.errors import DataError
from iwm.gameplay.config import IngestConfig, RecordConfig, RecordPlan
from iwm.gameplay.ingest import ingest
from iwm.gameplay.record import record

PLAN = RecordPlan(
    name="one", source="procedural", game="sprites", frames=90, frame_skip=1,
    width=64, height=64, max_episode_steps=15,
)  # fmt: skip
SERIAL = IngestConfig(executor="serial")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recording and its index."""
    folder = tmp_path_factory.mktemp("made")
    record(folder / "data", RecordConfig(plans=(PLAN,), workers=1))
    ingest(folder / "data", folder / "index", SERIAL)
    return folder


def damaged(content: bytes, seed: int) -> bytes:
    """One bit of a file changed, or the file cut."""
    choose = random.Random(seed)
    at = choose.randrange(len(content))
    if seed % 4 == 0:
        return content[:at]
    return content[:at] + bytes([content[at] ^ 1 << choose.randrange(8)]) + content[at + 1 :]


def refusal(read: Callable[[], pa.Table], rows: pa.Table) -> str | None:
    """What an index is refused with; ``None`` if it is read, which must give its very rows."""
    try:
        found = read()
    except DataError as error:
        return str(error)
    assert found.equals(rows)
    return None


def test_a_damaged_index_of_ingestion_is_named_and_made_anew(made: Path, tmp_path: Path) -> None:
    index = tmp_path / "index"
    shutil.copytree(made / "index", index)
    path = index / "frames/one.parquet"
    whole, rows = path.read_bytes(), read_usable_frames(index)
    named = 0
    for seed in range(120):
        path.write_bytes(damaged(whole, seed))
        said = refusal(lambda: read_usable_frames(index), rows)
        assert said is None or (str(path) in said and "\n" not in said)
        named += said is not None
    assert named > 90
    path.write_bytes(damaged(whole, 0))
    with pytest.raises(DataError, match=r"frames/one\.parquet: not readable"):
        validate_index(index, ValidateConfig(), None)
    # What was damaged is not taken for what was made before.
    assert ingest(made / "data", index, SERIAL).reused == 0
    assert path.read_bytes() == whole


def test_a_damaged_index_of_the_shards_is_named(tiny_shards: Path, tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    shutil.copytree(tiny_shards, folder)
    path = folder / "index.parquet"
    whole, rows = path.read_bytes(), ShardStore(folder).table
    for seed in range(60):
        path.write_bytes(damaged(whole, seed))
        said = refusal(lambda: ShardStore(folder).table, rows)
        assert said is None or str(path) in said

"""Recording a data folder: whole, the same again, never over what is there."""

from __future__ import annotations

import dataclasses
import hashlib
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from iwm.errors import ConfigError
from iwm.gameplay.config import RecordConfig, RecordPlan
from iwm.gameplay.play import TRUTH_FILE, derive_seed
from iwm.gameplay.reader import iter_frames, read_steps
from iwm.gameplay.record import record
from iwm.gameplay.schema import NO_ACTION, read_recording
from pipelines._repro import data_is_empty


def plan(name: str, source: str, game: str, frames: int, **more: object) -> RecordPlan:
    return RecordPlan(name=name, source=source, game=game, frames=frames, **more)  # type: ignore


SPRITES = plan(
    "sprites", "procedural", "sprites", 50, frame_skip=1, width=64, height=64, max_episode_steps=20
)
PLANS = (
    SPRITES,
    plan("home", "vizdoom", "my_way_home", 40, max_episode_steps=30),
    plan("gather", "vizdoom", "health_gathering", 120, codec="h264"),
    plan("breakout", "gymnasium", "ALE/Breakout-v5", 40, frame_skip=4, width=160, height=210),
    plan("grid", "gymnasium", "MiniGrid-Empty-5x5-v0", 30, frame_skip=1, width=80, height=80),
)


def digests(folder: Path) -> dict[str, str]:
    return {
        str(file.relative_to(folder)): hashlib.sha1(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


ANEW = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
if __name__ == "__main__":
    from test_record import PLANS
    from iwm.gameplay.config import RecordConfig
    from iwm.gameplay.record import record
    record(Path({folder!r}), RecordConfig(seed=3, workers=1, plans=PLANS))
"""


def test_same_seed_same_bytes_in_another_process(tmp_path: Path) -> None:
    summary = record(tmp_path / "one", RecordConfig(seed=3, workers=2, plans=PLANS))
    script = tmp_path / "anew.py"
    script.write_text(ANEW.format(tests=str(Path(__file__).parent), folder=str(tmp_path / "two")))
    subprocess.run([sys.executable, str(script)], check=True, cwd=tmp_path)
    first = digests(tmp_path / "one")
    assert first == digests(tmp_path / "two")
    assert summary.frames == sum(entry.frames for entry in PLANS)

    for entry in PLANS:
        folder = tmp_path / "one" / entry.name
        recording, steps = read_recording(folder), read_steps(folder)
        assert recording.complete
        assert steps["frame"].to_pylist() == list(range(steps.num_rows))
        assert sum(item.image is not None for item in iter_frames(folder, recording)) == len(steps)
        rows = steps.to_pylist()
        for row, following in zip(rows, [*rows[1:], None], strict=True):
            last = following is None or following["episode"] != row["episode"]
            assert (row["action"] == NO_ACTION) == last
            assert last or following["step"] == row["step"] + 1
            assert row["step"] < entry.max_episode_steps
    truth = pq.read_table(tmp_path / "one" / "sprites" / TRUTH_FILE)
    assert truth["frame"].to_pylist() == list(range(50))


def test_another_seed_gives_other_frames(tmp_path: Path) -> None:
    for seed in (1, 2):
        record(tmp_path / str(seed), RecordConfig(seed=seed, workers=1, plans=(SPRITES,)))
    one, two = digests(tmp_path / "1"), digests(tmp_path / "2")
    assert one["sprites/frames.mkv"] != two["sprites/frames.mkv"]


def test_what_is_there_stays(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "film.mkv").write_bytes(b"mine")
    (tmp_path / ".partial-0-old").mkdir()
    config = RecordConfig(seed=1, workers=1, plans=(SPRITES,))
    summary = record(tmp_path, config)
    assert summary.made == ()
    assert summary.kept == ("mine",)
    assert "there already" in "\n".join(summary.lines())
    assert ".partial-0-old" in "\n".join(summary.lines())

    assert record(tmp_path, config, add=True).made == ("sprites",)
    before = digests(tmp_path)
    assert record(tmp_path, config, add=True).made == ()
    assert record(tmp_path, config, only=["sprites"]).made == ()
    assert digests(tmp_path) == before
    assert before["mine/film.mkv"] == hashlib.sha1(b"mine").hexdigest()


TWO = tuple(
    dataclasses.replace(SPRITES, name=name, frames=n) for name, n in (("a", 2001), ("b", 2000))
)


def test_what_a_killed_recorder_had_not_made_the_next_one_makes(tmp_path: Path) -> None:
    data, config = tmp_path / "data", RecordConfig(seed=3, workers=1, plans=TWO)
    script = tmp_path / "anew.py"
    script.write_text(
        ANEW.format(tests=str(Path(__file__).parent), folder=str(data)).replace("PLANS", "TWO")
    )
    with subprocess.Popen([sys.executable, str(script)]) as recorder:
        while not (data / "a").exists():
            assert recorder.poll() is None
            time.sleep(0.01)
        recorder.kill()
    assert not (data / "b").exists()
    assert data_is_empty(tmp_path)
    before = digests(data / "a")
    assert record(data, config).made == ("b",)
    assert not data_is_empty(tmp_path)
    assert digests(data / "a") == before
    record(tmp_path / "calm", config)
    assert {n: d for n, d in digests(data).items() if not n.startswith(".")} == digests(
        tmp_path / "calm"
    )


def test_a_plan_that_fails_leaves_nothing_half_made(tmp_path: Path) -> None:
    config = RecordConfig(workers=1, plans=(plan("x", "vizdoom", "quake", 10),))
    with pytest.raises(ConfigError, match="no scenario 'quake'"):
        record(tmp_path, config)
    assert list(tmp_path.iterdir()) == []


def test_plans_that_make_no_sense(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="more than one is named sprites"):
        record(tmp_path, RecordConfig(plans=(SPRITES, SPRITES)))
    with pytest.raises(ConfigError, match="no plan 'other'"):
        record(tmp_path, RecordConfig(plans=(SPRITES,)), only=["other"])


def test_seeds_never_change() -> None:
    assert derive_seed(7, "my_way_home", 0) == derive_seed(7, "my_way_home", 0)
    assert derive_seed("a", 1) == 999_889_237
    assert len({derive_seed(7, "x", number) for number in range(1000)}) == 1000

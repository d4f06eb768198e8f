"""The drop folder: what is whole, what waits, and the flow that takes it while it runs."""

from __future__ import annotations

import json
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import toy

from flows.drop import Drop, broken
from iwm.errors import DataError


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def names(look: Any) -> list[str]:
    return [path.name for path in look.ready]


def test_a_copy_in_progress_waits_and_is_taken_when_it_is_whole(tmp_path: Path) -> None:
    whole, inbox, clock = toy.record(tmp_path / "made" / "one"), tmp_path / "inbox", Clock()
    inbox.mkdir()
    drop = Drop(inbox, settle_s=10, clock=clock)
    assert names(drop.look()) == []

    # The description first, half of the video, no steps yet: as a slow copy leaves it.
    half = inbox / "one"
    half.mkdir()
    shutil.copy2(whole / "recording.json", half)
    video = next(whole.glob("*.mkv"))
    (half / video.name).write_bytes(video.read_bytes()[: video.stat().st_size // 2])
    assert drop.look().waiting == {"one": "still being written"}
    clock.now = 11  # quiet, yet not whole
    look = drop.look()
    assert not look.ready
    assert "steps.parquet: not found" in look.waiting["one"]

    shutil.copy2(video, half)
    shutil.copy2(whole / "steps.parquet", half)
    assert drop.look().waiting == {"one": "still being written"}
    clock.now = 20
    assert drop.look().waiting == {"one": "still being written"}
    clock.now = 22
    assert names(drop.look()) == ["one"]
    assert names(drop.look(frozenset({"one"}))) == []


def test_a_clock_that_jumps_back_and_old_time_stamps_do_not_matter(tmp_path: Path) -> None:
    import os

    folder = toy.record(tmp_path / "inbox" / "old")
    for path in folder.rglob("*"):
        os.utime(path, (1, 1))
    clock = Clock()
    drop = Drop(tmp_path / "inbox", settle_s=5, clock=clock)
    assert not drop.look().ready
    clock.now = 6
    assert names(drop.look()) == ["old"]


def test_what_is_broken_says_why(tmp_path: Path) -> None:
    folder = toy.record(tmp_path / "one")
    assert broken(folder) is None
    video = next(folder.glob("*.mkv"))
    video.write_bytes(b"no video")
    assert video.name in (broken(folder) or "")
    (folder / "recording.json").write_text("{")
    assert "recording.json" in (broken(folder) or "")
    with pytest.raises(DataError, match="the drop folder is not there"):
        Drop(tmp_path / "none").look()


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_server")
def test_recordings_that_arrive_while_the_flow_runs(repo: Path, tmp_path: Path) -> None:
    from flows.ingest import ingest_gameplay

    graph = (repo / "dvc.yaml").read_text()
    (repo / "dvc.yaml").write_text(graph.replace("ingest", "shard"))
    inbox = tmp_path / "inbox"
    toy.record(inbox / "first")
    (inbox / "empty").mkdir()

    def arrive() -> None:
        time.sleep(6)
        toy.record(inbox / "second", steps=8)
        (inbox / "third").mkdir()
        shutil.copy2(inbox / "first" / "recording.json", inbox / "third")

    other = threading.Thread(target=arrive)
    other.start()
    state = ingest_gameplay(drop=str(inbox), watch_s=25, settle_s=1, return_state=True)
    other.join()
    assert state.is_completed()
    assert (state.message or "").startswith("2 recordings taken; third waits: ")
    assert sorted(p.name for p in (repo / "data").iterdir() if p.is_dir()) == ["first", "second"]
    assert len(toy.calls(repo, "shard")) == 2  # two versions of the dataset
    assert json.loads((repo / "behave.json").read_text()) == {}
    assert (inbox / "first").is_dir()  # nothing of the user's is moved

    # The very same again: nothing new. Another one of a name that is there: refused by name.
    shutil.rmtree(inbox / "first")
    toy.record(inbox / "first", steps=9)
    state = ingest_gameplay(drop=str(inbox), settle_s=0.5, return_state=True)
    assert state.is_completed()
    assert "0 recordings taken" in (state.message or "")
    assert "another recording has that name" in (state.message or "")

from __future__ import annotations

from pathlib import Path

import pytest

from flows.ingest import copy_in, find_recordings, import_recordings
from iwm.errors import DataError


def recording(folder: Path, text: str = "{}") -> Path:
    folder.mkdir(parents=True)
    (folder / "recording.json").write_text(text)
    (folder / "frames").mkdir()
    (folder / "frames" / "0.png").write_bytes(b"\x89PNG")
    return folder


def test_a_recording_or_a_folder_of_them(tmp_path: Path) -> None:
    one, two = recording(tmp_path / "all" / "one"), recording(tmp_path / "all" / "two")
    assert find_recordings(one) == [one]
    assert find_recordings(tmp_path / "all") == [one, two]
    with pytest.raises(DataError, match=r"empty: no recording\.json"):
        find_recordings(tmp_path / "empty")


def test_copied_once_and_never_over_another(tmp_path: Path) -> None:
    source, data = recording(tmp_path / "in" / "one"), tmp_path / "data"
    assert copy_in(source, data)
    assert (data / "one" / "frames" / "0.png").read_bytes() == b"\x89PNG"
    assert not copy_in(source, data)
    other = recording(tmp_path / "else" / "one", text='{"game": "other"}')
    with pytest.raises(DataError, match="another recording has that name"):
        copy_in(other, data)
    assert (data / "one" / "recording.json").read_text() == "{}"
    assert not list(data.glob(".partial-*"))


def test_the_task_names_what_is_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from prefect.logging import disable_run_logger

    monkeypatch.chdir(tmp_path)
    recording(tmp_path / "in" / "one")
    with disable_run_logger():
        assert import_recordings.fn([str(tmp_path / "in")]) == ["one"]
        assert import_recordings.fn([str(tmp_path / "in")]) == []

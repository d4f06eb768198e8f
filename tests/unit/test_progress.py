from __future__ import annotations

import pytest

from iwm.progress import Progress, track


def test_a_log_gets_plain_lines_with_rate_and_time_left(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with Progress("ingest", 10, "frames", every_s=0.0) as progress:
        progress.advance(4, note="loss 0.1")
        progress.advance(6)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("ingest: 4/10 (40 %) frames, ")
    assert " left loss 0.1" in lines[0]
    assert lines[-1].startswith("ingest: 10/10 (100 %) frames")
    assert "\r" not in "".join(lines)


def test_a_resumed_run_does_not_count_what_was_done_before(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with Progress("train", 100, "steps", initial=90) as progress:
        progress.advance(10)
        assert progress.done == 100
        progress._started -= 10.0  # as if ten seconds had passed
        assert progress.rate <= 1.0  # 10 units, not the 90 before them
    assert "100/100" in capsys.readouterr().err


def test_an_error_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RuntimeError):
        for item in track([1, 2, 3], "walk"):
            if item == 2:
                raise RuntimeError
    with pytest.raises(RuntimeError), Progress("walk", 3):
        raise RuntimeError
    assert "stopped after" in capsys.readouterr().err


def test_track_passes_everything_through() -> None:
    assert list(track(iter(range(5)), "count")) == list(range(5))

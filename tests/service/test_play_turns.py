"""On what this checkout trained: whoever holds "turn left" sees the view turn left."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.play import TURNS, measure
from iwm.files import read_json

ROOT = Path(__file__).resolve().parents[2]
MODEL, SHARDS = ROOT / "artifacts/models/vqvae-dynamics", ROOT / "artifacts/shards"


def vocabulary() -> tuple[str, ...]:
    if not (MODEL / "config.json").is_file() or not SHARDS.is_dir():
        return ()
    return tuple(read_json(MODEL / "config.json")["settings"]["vocabulary"])


@pytest.mark.slow
@pytest.mark.skipif(
    not set(TURNS) <= set(vocabulary()), reason="no trained dynamics of a game that turns"
)
def test_the_view_turns_as_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    options = ["--model", str(MODEL), "--shards", str(SHARDS), "--device", "cpu"]
    found = measure(options, vocabulary(), frames=60)
    print(found)
    for action, way in TURNS.items():
        turn = found["turns"][action]
        assert way * turn["mean_shift"] > 1.0  # a pixel of 64 a frame
        assert turn["share_right_way"] >= 0.75

"""What `iwm play` loads, and what it says when there is nothing to load."""

from __future__ import annotations

from pathlib import Path

import pytest
from fixtures import ACTIONS, write_store
from tinydreams import write_dreams
from tinymodel import write_model

from iwm.errors import DataError, ModelError
from pipelines.play import shown


def test_what_this_checkout_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    nothing = tmp_path / "nothing"
    with pytest.raises(ModelError, match="no trained model; run `dvc repro train@vqvae-dynamics`"):
        shown(None, nothing, nothing, "cpu", 2)
    dreams = write_dreams(tmp_path / "dreams", vocabulary=ACTIONS)
    (tmp_path / "artifacts/models").mkdir(parents=True)
    (dreams / "tokenizer").rename(tmp_path / "artifacts/models/vqvae")
    alone = shown(None, nothing, nothing, "cpu", 2)
    assert (alone.dreamer, alone.held_out) == (None, None)
    whole = write_dreams(tmp_path / "artifacts/models/vqvae-dynamics", vocabulary=ACTIONS)
    write_store(tmp_path / "shards", steps=6)
    both = shown(None, tmp_path / "shards", nothing, "cpu", 2)
    assert both.dreamer is not None
    assert both.dreamer.vocabulary == ACTIONS
    assert both.held_out is not None
    assert shown(whole, nothing, nothing, "cpu", 2).held_out is None


def test_other_models_and_other_games_are_refused(tmp_path: Path) -> None:
    other = write_model(tmp_path / "core")
    with pytest.raises(ModelError, match="only vqvae-dynamics and vqvae show frames"):
        shown(other, tmp_path / "nothing", tmp_path, "cpu", 2)
    with pytest.raises(ModelError, match="holds no model"):
        shown(tmp_path / "nothing", tmp_path / "nothing", tmp_path, "cpu", 2)
    write_store(tmp_path / "shards", steps=6)
    with pytest.raises(DataError, match="no recording has only actions"):
        shown(write_dreams(tmp_path / "doom"), tmp_path / "shards", tmp_path, "cpu", 2)

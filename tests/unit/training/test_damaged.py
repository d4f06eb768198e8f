"""Checkpoints and finished models whose bytes changed on the disk."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import trainruns as runs
from safetensors.torch import load_file

from iwm.data.reader import ShardStore
from iwm.errors import TrainingError
from iwm.training.checkpoint import checkpoints

EVERY = 4


def stopped(store: ShardStore, out: Path) -> list[Path]:
    """A run that was stopped after its second checkpoint; its checkpoints."""
    trainer = runs.make(store, out, checkpoint_every=EVERY)
    after = trainer.model.after_step

    def stop(progress: float) -> None:
        after(progress)
        if progress >= 2 * EVERY / 24:
            trainer.request_stop(15)

    trainer.model.after_step = stop  # type: ignore[method-assign]
    with pytest.raises(TrainingError, match="stopped at step 8"):
        trainer.fit()
    return checkpoints(out / "checkpoints")


def flip(path: Path, at: float = 0.9) -> None:
    """Change one byte of a file."""
    content = bytearray(path.read_bytes())
    content[int(at * len(content))] ^= 0x10
    path.write_bytes(content)


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "model.safetensors")


def equal(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


@pytest.fixture(scope="module")
def undisturbed(tiny_store: ShardStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed")
    runs.make(tiny_store, out).fit()
    return out


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.safetensors", "state.json"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_taken(
    file: str,
    undisturbed: Path,
    tiny_store: ShardStore,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    _, newest = stopped(tiny_store, tmp_path)
    if file == "state.json":
        (newest / file).write_text("{")
    else:
        flip(newest / file)
    runs.make(tiny_store, tmp_path, checkpoint_every=EVERY).fit()
    said = capsys.readouterr().out
    assert f"{newest} is damaged and passed over: " in said
    assert f"going on from step {EVERY} of 24" in said
    assert equal(weights(undisturbed), weights(tmp_path))


def test_with_every_checkpoint_damaged_training_starts_anew(
    undisturbed: Path, tiny_store: ShardStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for checkpoint in stopped(tiny_store, tmp_path):
        (checkpoint / "optimizer.safetensors").unlink()
    runs.make(tiny_store, tmp_path, checkpoint_every=EVERY).fit()
    assert capsys.readouterr().out.count("is damaged and passed over") == 2
    assert equal(weights(undisturbed), weights(tmp_path))


def test_a_finished_model_that_is_damaged_is_trained_again(
    undisturbed: Path, tiny_store: ShardStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs.make(tiny_store, tmp_path).fit()
    flip(tmp_path / "model.safetensors")
    assert not runs.make(tiny_store, tmp_path).fit().already_done
    assert "model.safetensors is not what training wrote; training anew" in capsys.readouterr().out
    assert equal(weights(undisturbed), weights(tmp_path))
    (tmp_path / "history.jsonl").unlink()  # taken away by a kill while DVC linked the folder
    assert not runs.make(tiny_store, tmp_path).fit().already_done
    assert runs.make(tiny_store, tmp_path).fit().already_done

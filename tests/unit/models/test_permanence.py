from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from iwm.data.removals import RemovalSet
from iwm.errors import ConfigError, ModelError
from iwm.models.permanence import ObjectPermanence
from iwm.models.registry import create_model, load_model
from iwm.objectives.gather import Part

SIZE = 32


def tiny(seed: int = 0, **over: object) -> ObjectPermanence:
    torch.manual_seed(seed)
    shape: dict[str, object] = {"width": 16, "match": 8, "head": 16, "reach": [1, 2]}
    model = create_model("permanence", **{"image_size": [SIZE, SIZE], **shape, **over})
    assert isinstance(model, ObjectPermanence)
    return model.eval()


def frames(batch: int, length: int = 3, seed: int = 0) -> Tensor:
    """uint8 [B, T, 3, H, W]: a square on a dim field that moves a pixel a frame."""
    generator = torch.Generator().manual_seed(seed)
    field = 60 + 20 * torch.rand(batch, 3, SIZE, SIZE, generator=generator)
    for row, (down, across) in enumerate(torch.randint(4, 22, (batch, 2), generator=generator)):
        colour = 120 + 130 * torch.rand(3, 1, 1, generator=generator)
        field[row, :, down : down + 6, across : across + 6] = colour
    moved = [torch.roll(field, step, 3) for step in range(length)]
    return torch.stack(moved, 1).to(torch.uint8)


def runs(batch: int) -> tuple[Tensor, Tensor]:
    """The last two frames [B, 2, 3, H, W], and the next one."""
    found = frames(batch)
    return found[:, :2], found[:, 2]


def test_log_odds_for_each_cell_and_a_score_for_the_pair() -> None:
    model = tiny()
    before, after = runs(3)
    found = model.vanished(before, after)
    assert found.shape == (3, 8, 8)
    torch.testing.assert_close(found, model.vanished(before / 255, after / 255))
    expected = torch.log1p(found.exp()).flatten(1).amax(1)
    torch.testing.assert_close(model.score(before, after), expected)
    assert not found.requires_grad


def test_cells_further_than_the_reach_are_not_looked_at() -> None:
    model = tiny()
    ways = (~model.outside).view(8, 8, 8, 8)
    assert ways[4, 4].nonzero().tolist() == [
        [row, column] for row in (3, 4, 5) for column in (2, 3, 4, 5, 6)
    ]
    assert int(model.places.max()) == 3 * 5 - 1
    # The same way has the same number wherever it begins.
    places = model.places.view(8, 8, 8, 8)
    assert places[4, 4, 5, 3] == places[1, 6, 2, 5]


def test_it_learns_to_miss_what_was_taken_away() -> None:
    model = tiny(apparitions={"untouched": 0.1, "count": 1, "kinds": (0.6, 0.2, 0.1, 0.1)})
    optimizer = torch.optim.AdamW(model.parameters(), 5e-3)
    losses, found = [], []
    for step in range(120):
        model.before_step(step)
        loss, logs = model(SimpleNamespace(images=frames(24, seed=step % 8)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
        found.append(float(logs["found"]))
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])
    assert {"loss_cells", "found", "false_alarms"} == set(logs)
    assert sum(found[-20:]) > 0.35 * 20 > 2 * sum(found[:20])
    assert float(logs["false_alarms"]) < 0.1


def taken_away(count: int = 12, seed: int = 0) -> RemovalSet:
    """Squares that are gone from the third frame."""
    found = frames(count, seed=seed)
    runs, gone = found.clone(), torch.zeros(count, SIZE, SIZE, dtype=torch.uint8)
    for row in range(count):
        square = found[row, 1, 0] > 90
        gone[row][square] = 255
        runs[row, 2] = 70
    return RemovalSet(
        name="squares",
        source="toy",
        game="toy",
        seed=seed,
        frames=runs.permute(0, 1, 3, 4, 2).numpy(),
        gone=gone.numpy(),
        episode=np.arange(count),
    )


def test_it_learns_from_what_an_engine_took_away() -> None:
    # Nothing is pretended: only runs of the set lose anything.
    model = tiny(apparitions={"untouched": 1.0}, removed=0.5)
    model.learn_from([taken_away(24)])
    optimizer = torch.optim.AdamW(model.parameters(), 5e-3)
    for step in range(80):
        model.before_step(step)
        loss, logs = model(SimpleNamespace(images=frames(24, seed=step % 8)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(logs["found"]) > 0.5
    fresh = taken_away(24, seed=9)
    runs = torch.from_numpy(fresh.frames).permute(0, 1, 4, 2, 3)
    truth = frames(24, seed=9)
    gone = model.score(runs[:, :2], runs[:, 2])
    there = model.score(truth[:, :2], truth[:, 2])
    assert (gone > there).float().mean() > 0.8
    with pytest.raises(ModelError, match=r"removals of squares have pictures of \[32, 32\]"):
        tiny(image_size=[64, 64]).learn_from([fresh])


@pytest.mark.parametrize("removals", [False, True])
def test_parts_of_a_batch_sum_to_the_whole(removals: bool) -> None:
    model = tiny()
    if removals:
        model.learn_from([taken_away(), taken_away(5, seed=1)])
    images = frames(6)
    model.before_step(3)
    whole = model(SimpleNamespace(images=images))[0]
    parts = []
    for rank, rows in enumerate((slice(0, 2), slice(2, 6))):
        part = Part(rank, (2, 4))
        object.__setattr__(part, "gather", lambda _: images[:, 1] / 255)
        model.before_step(3, part)
        parts.append(model(SimpleNamespace(images=images[rows]))[0])
    # Gradients are averaged over processes, so the loss is the mean of what they have.
    torch.testing.assert_close(torch.stack(parts).mean(), whole)


def test_saved_and_loaded(tmp_path: Path) -> None:
    model = tiny()
    model.save_pretrained(tmp_path)
    before, after = runs(2)
    again = load_model(tmp_path)
    assert isinstance(again, ObjectPermanence)
    assert not again.training
    assert load_model(tmp_path, trainable=True).training
    assert torch.equal(again.vanished(before, after), model.vanished(before, after))


def test_bad_input_is_named(tmp_path: Path) -> None:
    model = tiny()
    before, after = runs(2)
    with pytest.raises(ModelError, match="2 runs of frames and 1 next ones"):
        model.vanished(before, after[:1])
    with pytest.raises(ModelError, match=r"takes \[2, 3, 32, 32\] and \[3, 32, 32\]"):
        model.vanished(before[..., :16], after[..., :16])
    with pytest.raises(ModelError, match="at least three frames"):
        model(SimpleNamespace(images=frames(2)[:, :2]))
    with pytest.raises(ConfigError, match=r"cell 6 does not divide"):
        tiny(cell=6)
    with pytest.raises(ConfigError, match=r"model\.wide"):
        tiny(wide=3)
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights["way"] = weights["way"][:, :3].contiguous()
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match="way"):
        load_model(tmp_path)

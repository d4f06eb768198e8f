"""Where dreams begin: held-out frames in a row, with the names of what led through them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from fixtures import ACTIONS, write_store

from iwm.app.starts import HeldOut
from iwm.data.reader import ShardStore
from iwm.errors import DataError
from iwm.serving.preprocess import Preprocess


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ShardStore:
    folder = tmp_path_factory.mktemp("starts") / "shards"
    write_store(folder, steps=6, skip=frozenset({(4, 2)}))
    return ShardStore(folder)


def test_a_start_is_a_run_of_one_episode_and_knows_its_actions(store: ShardStore) -> None:
    held_out = HeldOut(store, Preprocess((32, 32), "resize"), ("fly", *ACTIONS), context=3)
    rows = store.rows("test")
    assert len(held_out) == len(rows)
    lengths = set()
    for place, row in enumerate(rows):
        start = held_out.start(place)
        count = len(start.frames)
        lengths.add(count)
        assert start.frames.shape == (count, 32, 32, 3)
        assert start.actions is not None
        assert len(start.actions) == count - 1
        own = store.actions()[row - count + 1 : row]
        assert start.actions == tuple(ACTIONS[action] for action in own)
        recording, episode, step = store.keys(np.array([row]))[0].split("/")
        assert start.caption == f"{recording}, episode {int(episode)}, frame {int(step)}"
        # Frame 2 of episode 4 is missing: nothing reaches across the gap.
        whole = int(step) - (3 if int(step) > 2 and int(episode) == 4 else 0) + 1
        assert count == min(3, whole)
    assert lengths == {1, 2, 3}
    first, again = held_out.start(0), held_out.start(len(held_out))
    assert np.array_equal(first.frames, again.frames)


def test_a_picture_keeps_its_size(store: ShardStore) -> None:
    held_out = HeldOut(store, Preprocess((32, 32)))
    image, caption = held_out.image(3)
    assert image.shape == store.image_shape
    assert caption.startswith("one, episode 4, frame")


def test_frames_of_another_game_are_refused(store: ShardStore) -> None:
    with pytest.raises(DataError, match="no recording has only actions of the model's vocabulary"):
        HeldOut(store, Preprocess((32, 32)), ("left", "right"))


def test_training_frames_are_no_starts(tmp_path: Path) -> None:
    write_store(tmp_path / "shards", splits=("train",), episodes=2, steps=3)
    with pytest.raises(DataError, match="no held-out frames"):
        HeldOut(ShardStore(tmp_path / "shards"), Preprocess((32, 32)))
    write_store(tmp_path / "val", splits=("train", "val"), episodes=2, steps=3)
    assert len(HeldOut(ShardStore(tmp_path / "val"), Preprocess((32, 32)))) == 6

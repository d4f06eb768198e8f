"""What the page answers, without a browser: pictures of every kind, broken ones, none."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fixtures import ACTIONS, write_store
from PIL import Image
from tinydreams import SIZE, tiny_dreams

from iwm.app import blocks
from iwm.app.server import Shown
from iwm.app.starts import HeldOut
from iwm.data.reader import ShardStore
from iwm.serving.dreaming import Dreamer, Reconstruction


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Shown:
    folder = tmp_path_factory.mktemp("blocks")
    write_store(folder / "shards", steps=6)
    dreamer = Dreamer(tiny_dreams(vocabulary=ACTIONS), "cpu", {"model": "<i>tiny", "version": "2"})
    held_out = HeldOut(ShardStore(folder / "shards"), dreamer.codec.preprocess, ACTIONS, 3)
    return Shown(dreamer.codec, dreamer, held_out, folder)


def answering(shown: Shown, name: str) -> Callable[..., tuple[Any, ...]]:
    """The function behind an event of the page, by its name."""
    found: Callable[..., tuple[Any, ...]] = next(
        one.fn for one in blocks.build(shown).fns.values() if one.name == name
    )
    return found


def test_a_picture_of_any_kind_and_what_is_none(shown: Shown, tmp_path: Path) -> None:
    of_file = answering(shown, "of_file")
    pixels = np.random.default_rng(0).integers(0, 256, (7, 40, 3), np.uint8)
    path = tmp_path / "brought"
    for mode in ("RGB", "L", "P", "1", "RGBA", "I;16"):
        grey = Image.fromarray(pixels[:, :, 0].astype(np.uint16) * 257)
        buffer = io.BytesIO()
        (grey if mode == "I;16" else Image.fromarray(pixels).convert(mode)).save(buffer, "PNG")
        path.write_bytes(buffer.getvalue())
        *pictures, told = of_file({"path": str(path)})
        assert [picture.shape for picture in pictures] == [(SIZE, SIZE, 3)] * 4
        assert {picture.dtype for picture in pictures} == {np.dtype(np.uint8)}
        assert "your picture, 40 x 7, seen at 32 x 32" in told
        assert "8 x 8, each one of 125" in told
    path.write_bytes(b"\x89PNG\r\n\x1a\nno picture")
    *pictures, told = of_file({"path": str(path)})
    assert pictures == [None] * 4
    assert told.startswith('<p role="alert">your picture: broken or cut-off PNG')
    assert of_file(None) == blocks.NOTHING


def test_a_held_out_frame(shown: Shown) -> None:
    *pictures, told = answering(shown, "of_held_out")()
    assert len(pictures) == 4
    assert "episode" in told


def test_an_error_map_is_white_where_there_is_none() -> None:
    original = np.full((4, 4, 3), 90, np.uint8)
    image = original.copy()
    image[1, 2], image[3, 3] = 255, 100
    drawn = blocks.error_map(Reconstruction(original, image, 20.0, 0.5, (2, 2), 125, 28.0))
    assert np.array_equal(drawn[0], np.full((4, 3), 255))
    assert drawn[1, 2].tolist() == [90, 0, 20]
    assert drawn[1, 2].sum() < drawn[3, 3].sum() < 3 * 255


def test_what_a_card_says_is_text(shown: Shown) -> None:
    assert "&lt;i&gt;tiny 2" in blocks._heading(shown)
    assert "5 actions" in blocks._heading(shown)

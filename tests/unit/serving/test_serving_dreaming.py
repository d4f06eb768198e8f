"""Reconstructions and dreams: sizes, words, seeds, and how many may play."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from tinydreams import CONTEXT, SIZE, VOCABULARY, tiny_dreams, write_dreams

from iwm.errors import DataError, ModelError, ServiceError
from iwm.serving.dreaming import (
    Codec,
    Dreamer,
    Sessions,
    Start,
    load_codec,
    load_dreamer,
)

PIXELS = np.random.default_rng(0).integers(0, 256, (CONTEXT + 1, SIZE, SIZE, 3), np.uint8)


@pytest.fixture(scope="module")
def dreamer() -> Dreamer:
    return Dreamer(tiny_dreams(), "cpu", {"model": "tiny", "version": "3"})


def test_a_reconstruction_counts_its_bits_and_its_errors(dreamer: Dreamer) -> None:
    codec = dreamer.codec
    first, second = codec.reconstruct(PIXELS[:2])
    assert first.image.shape == (SIZE, SIZE, 3)
    assert first.image.dtype == np.uint8
    assert (first.tokens, first.codes) == ((8, 8), 125)
    assert first.bits == pytest.approx(64 * np.log2(125))
    assert first.compression == pytest.approx(SIZE * SIZE * 24 / first.bits)
    error = np.square(first.original.astype(float) - first.image).mean()
    assert first.psnr == pytest.approx(10 * np.log10(255**2 / error), abs=1e-3)
    assert -1 <= first.ssim <= 1
    assert first.error.shape == (SIZE, SIZE)
    (alone,) = codec.reconstruct(PIXELS[1:2])  # in whatever company
    assert np.abs(alone.image.astype(int) - second.image).max() <= 1


def test_a_dream_follows_its_actions_and_its_seed(dreamer: Dreamer) -> None:
    start = Start(PIXELS[:2], ("noop",))
    frames = dreamer.dream(start, ["turn_left", "attack", "turn_left"], seed=4)
    assert frames.shape == (3, SIZE, SIZE, 3)
    again = dreamer.dream(start, ["turn_left", "attack", "turn_left"], seed=4)
    assert np.array_equal(frames, again)
    other = dreamer.dream(start, ["turn_right", "attack", "turn_left"], seed=4)
    assert not np.array_equal(frames[0], other[0])
    assert not np.array_equal(frames[0], dreamer.dream(Start(PIXELS[:2]), ["turn_left"])[0])
    common = dreamer.dream(start, ["wait"])  # a common name of noop
    assert np.array_equal(common, dreamer.dream(start, ["noop"]))


def test_a_dream_can_be_abandoned(dreamer: Dreamer) -> None:
    asked = iter([False, False, True])
    frames = dreamer.dream(Start(PIXELS[:1]), ["noop"] * 9, abandoned=lambda: next(asked))
    assert frames.shape == (2, SIZE, SIZE, 3)


@pytest.mark.parametrize(
    ("start", "line"),
    [
        (Start(PIXELS[: CONTEXT + 1]), f"frames: expected 1 to {CONTEXT}, given {CONTEXT + 1}"),
        (Start(PIXELS[:0]), "frames: expected 1 to"),
        (Start(PIXELS[:1, :8]), f"frames: expected {SIZE}x{SIZE} pixels, given 8x{SIZE}"),
        (Start(PIXELS[:2], ()), "past_actions: expected 1"),
        (Start(PIXELS[:2], ("fly",)), "expected one of noop, move_forward"),
    ],
)
def test_a_start_that_does_not_fit_is_refused(dreamer: Dreamer, start: Start, line: str) -> None:
    with pytest.raises(DataError, match=line):
        dreamer.dream(start, ["noop"])


def test_a_session_goes_where_a_dream_goes(dreamer: Dreamer) -> None:
    actions = ["turn_left", "noop", "attack"]
    start = Start(PIXELS[:CONTEXT])
    with Sessions(dreamer).place() as session:
        with pytest.raises(DataError, match="reset: expected before"):
            session.step("noop")
        assert np.array_equal(session.reset(start), PIXELS[CONTEXT - 1])
        stepped = [session.step(action) for action in actions]
        assert session.steps == 3
        with pytest.raises(DataError, match="expected one of"):
            session.step("fly")
        session.reset(start)
        assert session.steps == 0
    assert np.array_equal(np.stack(stepped), dreamer.dream(start, actions))


def test_places_are_counted_and_come_back(dreamer: Dreamer) -> None:
    sessions = Sessions(dreamer, most=2)
    full: list[str] = []

    def come(stay: threading.Barrier) -> None:
        try:
            with sessions.place():
                stay.wait(30)
        except ServiceError as error:
            full.append(str(error))
            stay.wait(30)

    stay = threading.Barrier(3)
    visitors = [threading.Thread(target=come, args=(stay,)) for _ in range(3)]
    for visitor in visitors:
        visitor.start()
    for visitor in visitors:
        visitor.join()
    assert full == ["all 2 places to play are taken; try again later"]
    assert sessions.open == 0
    with pytest.raises(ZeroDivisionError), sessions.place():
        _ = 1 / 0
    assert sessions.open == 0


def test_what_a_folder_must_hold(tmp_path: Path) -> None:
    folder = write_dreams(tmp_path / "dreams")
    assert load_dreamer(folder, "cpu").vocabulary == VOCABULARY
    assert load_codec(folder / "tokenizer", "cpu").size == (SIZE, SIZE)
    with pytest.raises(ModelError, match="no such model folder"):
        load_dreamer(tmp_path / "nothing")
    with pytest.raises(ModelError, match="holds a model 'vqvae', expected 'vqvae-dynamics'"):
        load_dreamer(folder / "tokenizer")
    with pytest.raises(ModelError, match="expected 'vqvae'"):
        load_codec(folder)


def test_names(dreamer: Dreamer) -> None:
    assert dreamer.name == "tiny/3"
    assert dreamer.idle == "noop"
    assert isinstance(dreamer.codec, Codec)

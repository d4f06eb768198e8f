"""Figures of dreams: of a dreamer that knows the world, of one that copies, of a blind one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import toydreams
from fixtures import ACTIONS, MOVES, write_store
from toydreams import BLIND, COPYING, PERFECT, VOCABULARY

from iwm.data.reader import ShardStore
from iwm.errors import DataError
from iwm.evaluation import controllability, generation, pixels
from iwm.evaluation.frechet import frechet_distances
from iwm.evaluation.inverse import train_reader
from iwm.evaluation.latents import pixels as as_features
from iwm.evaluation.optical_flow import horizontal_flow
from iwm.evaluation.sequences import imagine, read_windows

PRESENT = 3
BOOT = {"resamples": 200, "seed": 0}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    write_store(folder)
    return folder


@pytest.fixture(scope="module")
def windows() -> toydreams.Windows:
    return toydreams.windows()


def dream(model: toydreams.Dreamer, windows: toydreams.Windows, context: int = 4):  # type: ignore[no-untyped-def]
    ahead = windows.actions[:, PRESENT:]
    return imagine(model, windows, ahead, present=PRESENT, context=context, batch=7)


def test_a_model_that_knows_the_world_is_perfect(windows: toydreams.Windows) -> None:
    made = dream(PERFECT, windows)
    assert torch.equal(made.frames, windows.frames[:, PRESENT + 1 :])
    figures = generation.next_frame(PERFECT, windows, made, PRESENT, **BOOT)
    assert figures["all"]["model"]["mean"] == pixels.CEILING_DB
    assert figures["moving"]["gain_copy_last"]["low"] > 20
    assert figures["tokens"]["model"]["mean"] == 1
    assert figures["tokens"]["gain_copy_last"]["low"] > 0
    assert figures["changed_tokens"]["model"]["mean"] == 1
    assert figures["all"]["tokenizer"]["mean"] < figures["all"]["model"]["mean"]
    steps = generation.sequence(windows, made.frames, PRESENT, **BOOT)
    assert list(steps) == [*(f"k{k}" for k in range(1, 11)), "drift"]
    assert steps["k10"]["gain_copy_last"]["low"] > 5
    assert steps["k10"]["gain_unrelated"]["low"] > 20
    assert steps["drift"]["model"]["mean"] == 0


def test_a_model_that_copies_the_last_frame_gains_nothing(windows: toydreams.Windows) -> None:
    made = dream(COPYING, windows, context=1)
    figures = generation.next_frame(COPYING, windows, made, PRESENT, **BOOT)
    for name in ("all", "moving", "tokens"):
        gain = figures[name]["gain_copy_last"]
        assert (gain["mean"], gain["low"], gain["high"]) == (0, 0, 0)
    assert figures["all"]["by_frame"]["gain_copy_last"]["mean"] == 0
    assert figures["changed_tokens"]["model"]["mean"] == 0
    steps = generation.sequence(windows, made.frames, PRESENT, **BOOT)
    assert all(steps[f"k{k}"]["gain_copy_last"]["mean"] == 0 for k in range(1, 11))


def test_pooled_psnr_is_of_the_mean_error_and_not_ruled_by_moments_of_rest() -> None:
    episodes = np.arange(4)
    errors = {"model": np.full(4, 100.0), "copy_last": np.array([0.0, 0.0, 400.0, 400.0])}
    figures = generation.pooled(errors, {"gain": ("model", "copy_last")}, episodes, **BOOT)
    assert figures["model"]["mean"] == pytest.approx(10 * np.log10(255**2 / 100))
    assert figures["gain"]["mean"] == pytest.approx(10 * np.log10(2))
    by_frame = pixels.decibels(errors["model"]) - pixels.decibels(errors["copy_last"])
    assert by_frame.mean() < -10


def test_delta_psnr_is_zero_for_a_blind_model_and_positive_for_one_that_listens(
    windows: toydreams.Windows,
) -> None:
    random = windows.random_actions(10, seed=1)
    for model, works in ((BLIND, False), (PERFECT, True)):
        told = dream(model, windows).frames
        other = imagine(model, windows, random, present=PRESENT, context=4).frames
        figures = controllability.delta_psnr(windows, told, other, PRESENT, **BOOT)
        delta = figures["k4"]["delta"]
        assert (delta["low"] > 1) if works else (delta["low"] == delta["high"] == 0)


def test_a_reader_reads_what_was_told_and_nothing_from_a_blind_model(
    windows: toydreams.Windows,
) -> None:
    pairs = toydreams.windows(count=256, frames=2, seed=5)
    reader = train_reader(pairs, len(VOCABULARY), steps=60, device=torch.device("cpu"), batch=64)
    random = windows.random_actions(10, seed=1)
    found = {}
    for name, model in (("perfect", PERFECT), ("blind", BLIND)):
        told = dream(model, windows).frames
        other = imagine(model, windows, random, present=PRESENT, context=4).frames
        found[name] = controllability.agreement(
            reader, windows, told, other, random, PRESENT, **BOOT
        )
    assert found["perfect"]["real"]["mean"] > 0.8
    assert found["perfect"]["relative"]["mean"] == 1  # the very same pictures
    assert found["perfect"]["relative_random"]["low"] > 0.8
    assert found["blind"]["relative"]["high"] < 0.6
    assert found["blind"]["imagined"]["mean"] < 0.4


def test_the_view_turns_the_way_it_is_told(windows: toydreams.Windows) -> None:
    figures = controllability.turning(PERFECT, windows, present=PRESENT, context=4, resamples=200)
    assert figures["turn_left"]["mean"] == pytest.approx(5)
    assert figures["turn_right"]["mean"] == pytest.approx(-5)
    assert figures["left_minus_right"]["low"] > 9
    assert figures["real_turn_left"]["mean"] == pytest.approx(5)
    blind = controllability.turning(BLIND, windows, present=PRESENT, context=4, resamples=200)
    assert blind["left_minus_right"]["mean"] == 0
    deaf = toydreams.Dreamer(vocabulary=("a", "b", "c", "d", "e"))
    assert controllability.turning(deaf, windows, present=PRESENT, context=4, resamples=200) == {}


@pytest.mark.parametrize("shift", [-11, -3, 0, 4, 12])
def test_horizontal_flow_is_the_shift(shift: int) -> None:
    before = toydreams.GROUND[None].numpy()
    assert horizontal_flow(before, np.roll(before, shift, 2)) == [shift]


def test_frechet_distance_of_a_set_to_itself_is_nothing() -> None:
    frames = toydreams.windows(count=64, frames=16).frames.flatten(0, 1)
    noisy = (frames.float() + 40 * torch.randn(frames.shape)).clamp(0, 255).byte()

    def features(images: torch.Tensor) -> torch.Tensor:
        return as_features(images)[:, ::16]

    sets = {"same": frames, "near": noisy, "far": 255 - frames}
    found = frechet_distances(sets, frames, features)
    assert found["same"] == pytest.approx(0, abs=1e-3)
    assert 1e-3 < found["near"] < found["far"]
    # The order of the sets, and what else is asked, change nothing.
    assert frechet_distances({"near": noisy}, frames, features)["near"] == found["near"]


def test_windows_are_whole_held_out_and_of_the_right_actions(shards: Path) -> None:
    store = ShardStore(shards)
    vocabulary = ("down", "up", "right", "left", "stay")  # not the recordings' order
    found = read_windows(store, ("val", "test"), vocabulary, frames=6, count=40, seed=0)
    assert found.frames.shape == (40, 6, 64, 64, 3)
    assert len(np.unique(found.episode)) == 8
    assert np.bincount(np.unique(found.episode, return_inverse=True)[1]).tolist() == [5] * 8
    held = set(
        store.table.filter(store.table["split"].to_numpy() != "train")["episode"].to_pylist()
    )
    assert {int(label) & 0xFFFFFFFF for label in found.episode} <= held
    # The square moves as the action says, but for one at the edge.
    for name, (down, right) in zip(ACTIONS, MOVES, strict=True):
        at = (found.actions[:, 0] == vocabulary.index(name)).numpy()
        still = (found.frames[at, 1].int() - found.frames[at, 0].int()).abs().amax((1, 2, 3)) < 60
        assert still.all() if not (down or right) else not still.all()
    assert found.choices.all()
    with pytest.raises(DataError, match="has 60 frames in a row"):
        read_windows(store, ("test",), vocabulary, frames=60, count=4, seed=0)


def test_windows_do_not_run_over_what_was_set_aside(tmp_path: Path) -> None:
    write_store(tmp_path, skip=frozenset({(2, 12), (4, 12), (7, 12), (9, 12)}))
    store = ShardStore(tmp_path)
    with pytest.raises(DataError, match="frames in a row"):
        read_windows(store, ("val", "test"), store.all_actions(), frames=13, count=4, seed=0)
    assert len(
        read_windows(store, ("val", "test"), store.all_actions(), frames=12, count=4, seed=0)
    )

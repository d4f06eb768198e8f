"""Counterfactual retrieval against models whose figures are known."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from iwm.data.branches import BranchSet
from iwm.errors import ModelError
from iwm.evaluation.counterfactual import (
    counterfactual,
    patch_counterfactual,
    per_prediction,
    rank_outcomes,
)
from iwm.evaluation.play import encode_branches
from iwm.evaluation.predictions import predict_every
from iwm.evaluation.statistics import Figure, chance_mrr
from iwm.models.iwm import Prediction

NAMES = ("stay", "red", "green", "blue")
SHIFT = np.array([(0, 0, 0), (40, 0, 0), (0, 40, 0), (0, 0, 40)])


class Shifts:
    """Latents are mean colours; an action shifts one channel, or the model knows nothing."""

    latent_dim, history, vocabulary = 3, 3, ("other", *NAMES)

    def __init__(self, knows: bool = True, constant: bool = False) -> None:
        self._knows, self._constant = knows, constant
        self.contexts: list[tuple[int, ...]] = []

    def parameters(self) -> Any:
        return iter([torch.zeros(1)])

    def action_vectors(self, ids: Tensor, continuous: Tensor | None = None) -> Tensor:
        return torch.nn.functional.one_hot(ids.clamp(min=0), 5) * (ids >= 0).unsqueeze(-1) * 1.0

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        z = images.double().mean((2, 3))
        z = torch.zeros_like(z) if self._constant else z
        return z, z[:, None].repeat(1, 2, 1)

    def predict(
        self, z_cls: Tensor, action: Tensor, z_patches: Any = None, history: Any = None
    ) -> Prediction:
        self.contexts.append(() if history is None else tuple(history.z_cls.shape[1:]))
        shift = action[:, 1:].double() @ torch.from_numpy(SHIFT).double() if self._knows else 0
        moved = z_cls * (0 if self._constant else 1) + shift
        patches = None if z_patches is None else moved[:, None].expand_as(z_patches)
        return Prediction(moved, patches, torch.zeros(len(moved)))

    def rollout(self, z_cls: Tensor, actions: Tensor, history: Any = None) -> Prediction:
        raise AssertionError("ranking outcomes takes one step")


def colours(states: int = 40, twins: bool = False) -> BranchSet:
    """States of one colour each; with ``twins``, blue does what green does."""
    random = np.random.default_rng(0)
    shift = SHIFT[[0, 1, 2, 2]] if twins else SHIFT
    present = random.integers(0, 200, (states, 3))
    outcomes = present[:, None] + shift
    distinct = np.repeat((np.abs(shift[:, None] - shift).sum(-1) > 0)[None], states, 0)

    def picture(colour: Any) -> Any:
        return np.broadcast_to(colour[..., None, None, :], (*colour.shape[:-1], 4, 4, 3)).astype(
            np.uint8
        )

    return BranchSet(
        "colours",
        "procedural",
        "colours",
        0,
        NAMES,
        frames=picture(np.repeat(present[:, None], 4, 1)),
        actions=np.zeros((states, 3), np.int64),
        outcomes=picture(outcomes),
        valid=np.ones((states, 4), bool),
        distinct=distinct,
        episode=np.arange(states) // 4,
        step=np.zeros(states, np.int64),
        taken=np.zeros(states, np.int64),
        position=np.full((states, 3), np.nan),
        removed=picture(present),
        has_removed=np.zeros(states, bool),
        teleported=picture(present),
        has_teleported=np.zeros(states, bool),
    )


def measure(model: Any, branches: BranchSet, mode: str = "cls_only") -> dict[str, Figure]:
    found = encode_branches(model, branches, 0)
    if mode in ("with_patches", "patches"):
        return patch_counterfactual(model, found, resamples=100, batch=7)[mode]
    given: Any = {"cls_only": "single", "cls_only_history": "history"}[mode]
    predicted = predict_every(model, found.states, given)
    return counterfactual(model, found, given, predicted, resamples=100)


@pytest.mark.parametrize("mode", ["cls_only", "cls_only_history", "with_patches", "patches"])
def test_an_oracle_gets_everything_and_the_baselines_do_not(mode: Any) -> None:
    figures = measure(Shifts(), colours(), mode)
    assert figures["model"]["mean"] == figures["hit_at_1"]["mean"] == 1.0
    assert figures["merged"]["mean"] == figures["ceiling"]["mean"] == 1.0
    assert figures["chance"]["mean"] == pytest.approx(chance_mrr(4))
    assert figures["chance_hit_at_1"]["mean"] == 0.25
    # "stay" is right, the others tie behind it: ranks 1, 3, 3, 3.
    for arm in ("copy_last", "no_action"):
        assert figures[arm]["mean"] == pytest.approx((1 + 3 / 3) / 4)
    assert figures["wrong_action"]["mean"] < 0.5
    assert figures["indistinguishable"]["mean"] == 0


def test_a_collapsed_model_gets_the_middle_rank() -> None:
    figures = measure(Shifts(False, constant=True), colours())
    assert figures["model"]["mean"] == pytest.approx(1 / 2.5)
    assert figures["hit_at_1"]["mean"] == 0.25


def test_outcomes_that_look_alike_share_their_place() -> None:
    branches = colours(twins=True)
    figures = measure(Shifts(), branches)
    assert figures["ceiling"]["mean"] == pytest.approx((1 + 1 + 2 / 3 + 2 / 3) / 4)
    assert figures["ceiling_hit_at_1"]["mean"] == 0.75
    assert figures["merged_chance"]["mean"] == pytest.approx(chance_mrr(3))
    assert figures["indistinguishable"]["mean"] == 1


def test_history_ended_games_and_unknown_actions() -> None:
    branches = colours()
    model = Shifts()
    for mode, contexts in (("cls_only", {()}), ("cls_only_history", {(2, 3)})):
        model.contexts.clear()
        measure(model, branches, mode)
        assert set(model.contexts) == contexts
    valid = branches.valid.copy()
    valid[:, 3] = False
    ended = dataclasses.replace(branches, valid=valid)
    figures = measure(model, ended)
    encoded = encode_branches(model, ended, 0)
    _, reciprocal, episode = per_prediction(encoded, predict_every(model, encoded.states, "single"))
    assert reciprocal.mean() == 1.0
    assert len(reciprocal) == len(episode) == 3 * 40
    assert figures["chance"]["mean"] == pytest.approx(chance_mrr(3))
    assert (figures["model"]["mean"], figures["model"]["n"]) == (1.0, 3 * 40)
    with pytest.raises(ModelError, match="branch set colours has the action 'jump'"):
        measure(model, dataclasses.replace(branches, vocabulary=("jump",)))


@given(st.integers(2, 6), st.integers(0, 2**31), st.booleans())
def test_ties_are_shared_fairly(actions: int, seed: int, alike: bool) -> None:
    random = np.random.default_rng(seed)
    valid = random.random((3, actions)) < 0.8
    valid[:, 0] = True
    distance = random.integers(0, 4, (3, actions, actions)).astype(float)
    distinct = ~np.eye(actions, dtype=bool)[None].repeat(3, 0) & (not alike)
    found = rank_outcomes(distance, distinct, valid)
    count = np.repeat(valid.sum(1), valid.sum(1))
    assert ((found.reciprocal >= 1 / count) & (found.reciprocal <= 1)).all()
    assert (found.merged >= found.reciprocal - 1e-12).all()
    if alike:  # one candidate: the middle of all, a share of the first place
        assert found.reciprocal == pytest.approx(2 / (count + 1))
        assert found.hit == pytest.approx(1 / count)
        assert (found.merged == 1).all()
    # The order of the actions does not matter.
    order = random.permutation(actions)
    again = rank_outcomes(
        distance[:, order][:, :, order], distinct[:, order][:, :, order], valid[:, order]
    )
    assert np.sort(again.reciprocal) == pytest.approx(np.sort(found.reciprocal))
    assert np.sort(again.hit) == pytest.approx(np.sort(found.hit))

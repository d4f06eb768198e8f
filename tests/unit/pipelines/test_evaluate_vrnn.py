"""AIME and its twin are trained alike, or not compared."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest

from iwm.config import Params, ProfileName, merge, resolve_profile
from iwm.settings import parse
from pipelines._evaluate_vrnn import _unlike

ROOT = Path(__file__).parents[3]


def params(profile: str) -> Params:
    values = resolve_profile(profile, profiles=ROOT / "profiles.yaml", environ={})
    return parse(Params, values, profile)


@pytest.mark.parametrize("profile", get_args(ProfileName))
def test_in_every_profile_the_twin_differs_in_its_prior_alone(profile: str) -> None:
    train = params(profile).train
    assert _unlike(train["vrnn"], train["vrnn-single"]) is None
    names = ("vrnn", "vrnn-single", "vrnn-trunk")
    components = [train[name].model.get("max_components") for name in names]
    assert components[0] != components[1] == components[2] == 1
    assert train["vrnn"].init_from == "vrnn-trunk"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"init_from": None}, "init_from"),
        ({"seed": 9}, "seed"),
        ({"max_steps": 7}, "max_steps"),
        ({"precision": "bf16"}, "precision"),
        ({"model": {"loss": {"sigma": 0.1}}}, "model.loss"),
    ],
)
def test_what_differs_is_named(change: dict[str, Any], named: str) -> None:
    train = params("cpu").train
    twin = train["vrnn-single"]
    if "model" in change:
        change = {"model": merge(twin.model, change["model"])}
    assert _unlike(train["vrnn"], replace(twin, **change)) == named

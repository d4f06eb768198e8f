from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from iwm.errors import ModelError
from iwm.models.iwm import IWM
from iwm.models.registry import create_model
from iwm.models.transfer import start_from

SHAPE = {"width": 32, "depth": 1, "heads": 2}


def model(seed: int, **over: Any) -> IWM:
    torch.manual_seed(seed)
    values: dict[str, Any] = {
        "image_size": [32, 32],
        "encoder": {"patch": 8, **SHAPE},
        "predictor": SHAPE,
    }
    created = create_model("iwm", **{**values, **over})
    assert isinstance(created, IWM)
    return created


def test_the_encoder_and_the_layers_that_fit_are_copied(tmp_path: Path) -> None:
    first = model(0)
    first.save_pretrained(tmp_path)
    # A deeper predictor of a wider action vector: its second block and its action's first
    # layer, bias included, stay as they were made.
    second = model(1, predictor={**SHAPE, "depth": 2}, aug_dim=24)
    fresh = {name: value.clone() for name, value in second.predictor.state_dict().items()}
    copied = start_from(second, tmp_path)
    assert second.online is not None
    for encoder in (second.encoder, second.online):
        for name, value in first.encoder.state_dict().items():
            assert torch.equal(encoder.state_dict()[name], value), name
    old, new = first.predictor.state_dict(), second.predictor.state_dict()
    kept = {name for name in new if torch.equal(new[name], fresh[name])}
    same = {name for name in new if name in old and torch.equal(new[name], old[name])}
    assert "blocks.0.qkv.weight" in same
    assert "position" in same
    assert {"embed_action.0.weight", "embed_action.0.bias", "blocks.1.out.weight"} <= kept
    assert kept | same == set(new)
    assert 0 < copied < len(new)


def test_a_twin_becomes_the_same_model(tmp_path: Path) -> None:
    first, second = model(0).eval(), model(1).eval()
    first.save_pretrained(tmp_path)
    assert start_from(second, tmp_path) == len(second.predictor.state_dict())
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(first.encode(images)[0], second.encode(images)[0])


def test_an_encoder_of_another_shape_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"config\.json: not found"):
        start_from(model(0), tmp_path)
    model(0).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"pos_embed has shape \[1, 17, 32\].* \[1, 65, 32\]"):
        start_from(model(1, image_size=[64, 64]), tmp_path)

"""The status page without a browser: its policy, its bank."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient
from tinymodel import WIDTH, write_model

from iwm.errors import DataError
from iwm.files import read_json, write_json
from iwm.serving.app import create_app
from iwm.serving.config import ServiceConfig
from iwm.serving.engine import Engine
from iwm.serving.page.bank import BANK_FILE, MOST_FRAMES, read_bank, write_bank
from iwm.serving.runtime import Runtime


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_model(tmp_path_factory.mktemp("packed") / "tiny")
    images = np.random.default_rng(0).integers(0, 256, (3, 200, 300, 3), np.uint8)
    write_bank(folder, Engine.load(folder, "cpu"), list(images), ["a", "b", "c"])
    return folder


@pytest.fixture
def folder(packed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(packed, tmp_path / "copy"))


def client(engine: Engine | None) -> TestClient:
    config = ServiceConfig(device="cpu")
    return TestClient(create_app(config, Runtime(config, engine)))


def test_the_page_needs_nothing_from_elsewhere_and_its_policy_allows_only_itself() -> None:
    answer = client(None).get("/")
    assert answer.status_code == 200
    assert "://" not in answer.text
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    for kind in ("script", "style"):
        (block,) = re.findall(rf"<{kind}>(.*?)</{kind}>", answer.text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(block.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert " style=" not in answer.text
    assert not re.search(r"\bon[a-z]+=\"", answer.text)
    assert "/bank" not in client(None).get("/openapi.json").json()["paths"]


def test_the_bank_is_what_was_packed(packed: Path) -> None:
    engine = Engine.load(packed, "cpu")
    found = client(engine).get("/bank").json()
    assert found["why"] is None
    assert [frame["caption"] for frame in found["frames"]] == ["a", "b", "c"]
    images = np.random.default_rng(0).integers(0, 256, (3, 200, 300, 3), np.uint8)
    for image, frame in zip(images, found["frames"], strict=True):
        latent = np.frombuffer(base64.b64decode(frame["z_cls"]), "<f4")
        direct = engine.encode(np.stack([engine.preprocess(image)])).z_cls[0]
        np.testing.assert_allclose(latent, direct, atol=1e-6)
        assert base64.b64decode(frame["jpeg"]).startswith(b"\xff\xd8")


def test_without_a_model_it_is_refused_and_without_a_bank_it_says_so(engine: Engine) -> None:
    assert client(None).get("/bank").status_code == 503
    assert client(engine).get("/bank").json() == {
        "frames": [],
        "why": "this model was packed without a bank of frames",
    }


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda held: {**held, "weights_sha256": "0" * 64}, "of other weights"),
        (lambda held: {**held, "frames": [{"caption": "a"}]}, "damaged"),
        (lambda held: {**held, "frames": 7}, "damaged"),
        (lambda held: [], "damaged"),
        (
            lambda held: {
                **held,
                "frames": [{**held["frames"][0], "z_cls": base64.b64encode(b"1234").decode()}],
            },
            "another width",
        ),
    ],
)
def test_a_bank_that_does_not_fit_is_said_not_shown(folder: Path, change: object, why: str) -> None:
    held = json.loads((folder / BANK_FILE).read_text())
    (folder / BANK_FILE).write_text(json.dumps(change(held)))  # type: ignore[operator]
    found = read_bank(folder, WIDTH)
    assert found["frames"] == []
    assert re.search(why, found["why"])


def test_a_bank_stays_small(folder: Path) -> None:
    engine = Engine.load(folder, "cpu")
    images = [np.zeros((8, 8, 3), np.uint8)] * (MOST_FRAMES + 1)
    with pytest.raises(DataError, match="at most 64 frames"):
        write_bank(folder, engine, images, ["x"] * len(images))
    held = read_json(folder / BANK_FILE)
    (folder / BANK_FILE).write_text("no json")
    assert "damaged" in read_bank(folder, WIDTH)["why"]
    write_json(folder / BANK_FILE, {**held, "frames": held["frames"] * 100})
    assert len(read_bank(folder, WIDTH)["frames"]) == MOST_FRAMES
    (folder / BANK_FILE).write_bytes(b" " * (9 * 1024 * 1024))
    assert "larger than" in read_bank(folder, WIDTH)["why"]

"""Actions by name and history: the engine, and the service over a real (tiny) action model."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from tinymodel import AUG_DIM, HISTORY, PATCHES, SIZE, VOCABULARY, WIDTH, write_action_model

from iwm.errors import DataError
from iwm.files import read_json, write_json
from iwm.models.action import History
from iwm.serving.actions import ALIASES, position
from iwm.serving.app import Runtime, create_app
from iwm.serving.config import ServiceConfig
from iwm.serving.engine import Earlier, Engine

A = AUG_DIM + len(VOCABULARY)


@pytest.fixture(scope="module")
def acting(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return Engine.load(write_action_model(tmp_path_factory.mktemp("model") / "acting"), "cpu")


def latents(count: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal((count, WIDTH)).astype(np.float32)


def ask(engine: Engine, method: str, path: str, body: Any = None) -> httpx.Response:
    runtime = Runtime(ServiceConfig(), engine)

    async def call() -> httpx.Response:
        transport = httpx.ASGITransport(create_app(runtime.config, runtime))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
            return await http.request(method, path, json=body)

    try:
        return asyncio.run(call())
    finally:
        runtime.close()


Z = latents(1)[0].tolist()


def predicted(engine: Engine, **body: Any) -> Any:
    answer = ask(engine, "POST", "/predict", {"z_cls": Z, **body})
    assert answer.status_code == 200, answer.text
    return answer.json()["z_cls_pred"]


@pytest.mark.parametrize(
    ("name", "vocabulary", "found"),
    [
        ("move_forward", ("noop", "move_forward"), 1),
        ("move_forward", ("left", "right", "forward"), 2),
        ("move_forward", ("noop", "up", "down"), 1),
        ("turn_left", ("move_left", "left"), 1),
        ("attack", ("noop", "fire"), 1),
        ("wait", ("noop", "up"), 0),
        ("wait", ("left", "done"), 1),
        ("up", ("noop", "up"), 1),
    ],
)
def test_common_names_find_the_games_own(
    name: str, vocabulary: tuple[str, ...], found: int
) -> None:
    assert position(name, vocabulary) == found


def test_the_vocabularys_own_name_comes_before_a_common_one() -> None:
    for name, candidates in ALIASES.items():
        assert position(name, (*candidates, name)) == len(candidates)


def test_an_unknown_name_lists_the_vocabulary(acting: Engine) -> None:
    with pytest.raises(DataError, match=r"expected one of noop, move_forward, .*given 'fly'"):
        acting.action_vector(["noop", "fly"])


def test_named_actions_stand_behind_the_augmentation(acting: Engine) -> None:
    assert (acting.aug_dim, acting.augmentation_dim, acting.history) == (A, AUG_DIM, HISTORY - 1)
    vectors = acting.action_vector(["turn_left", None, "wait"])
    expected = acting.model.action_vectors(torch.tensor([2, -1, 0])).numpy()
    np.testing.assert_array_equal(vectors, expected)


def test_the_engine_is_the_model(acting: Engine) -> None:
    z, actions = latents(2), acting.action_vector(["turn_left", "attack", "noop", "wait"])
    steps = np.stack([actions[:3], actions[1:]])
    past = Earlier(np.stack([latents(2, 1), latents(2, 2)]), steps[:, :2])
    out = acting.rollout(z, steps, history=past)
    given = History(torch.from_numpy(past.z_cls), torch.from_numpy(past.actions))
    direct = acting.model.rollout(torch.from_numpy(z), torch.from_numpy(steps), given)
    np.testing.assert_allclose(out.z_cls, direct.z_cls.numpy(), atol=1e-5)
    alone = acting.rollout(z, steps)
    assert np.abs(alone.z_cls - out.z_cls).max() > 1e-4


def test_what_is_predicted_with_history_has_tables_of_its_own(tmp_path: Path) -> None:
    folder = write_action_model(tmp_path / "m")
    tables = read_json(folder / "calibration.json")
    other = {**tables, "error": {"predicted": [0.0, 4.0], "measured": [9.0, 9.0]}}
    write_json(folder / "calibration.json", {**tables, "history": other})
    engine = Engine.load(folder, "cpu")
    z, action = latents(1), engine.action_vector(["noop"])
    past = Earlier(latents(1, 1)[None], action[None])
    alone, after = engine.predict(z, action), engine.predict(z, action, history=past)
    assert alone.uncertainty is not None
    assert after.uncertainty is not None
    assert alone.uncertainty[0] < 9.0 == after.uncertainty[0]


def test_patches_do_not_change_what_the_cls_becomes(acting: Engine) -> None:
    image = np.random.default_rng(0).integers(0, 256, (1, SIZE, SIZE, 3), np.uint8)
    seen = acting.encode(image)
    actions = acting.action_vector(["turn_left", "attack", "noop", "turn_right"])[None]
    past = Earlier(latents(2)[None], actions[:, :2])
    alone = acting.rollout(seen.z_cls, actions, history=past)
    full = acting.rollout(seen.z_cls, actions, seen.z_patches, past)
    assert full.z_patches is not None
    assert full.z_patches.shape == (1, 4, PATCHES, WIDTH)
    np.testing.assert_allclose(full.z_cls, alone.z_cls, atol=1e-4)


def test_predict_by_name_by_numbers_and_both(acting: Engine) -> None:
    z = np.array([Z], np.float32)
    vector = acting.action_vector(["turn_left"])
    named = predicted(acting, action="turn_left")
    np.testing.assert_allclose(named, acting.predict(z, vector).z_cls[0], atol=1e-5)
    np.testing.assert_allclose(
        predicted(acting, aug_params=vector[0].tolist()), named, atol=1e-5
    )  # the whole vector
    short = predicted(acting, aug_params=[0.5, 0.1])
    padded = np.zeros((1, A), np.float32)
    padded[0, :2] = 0.5, 0.1
    np.testing.assert_allclose(short, acting.predict(z, padded).z_cls[0], atol=1e-5)
    vector[0, :2] = 0.5, 0.1
    both = predicted(acting, action="turn_left", aug_params=[0.5, 0.1])
    np.testing.assert_allclose(both, acting.predict(z, vector).z_cls[0], atol=1e-5)
    assert np.abs(np.subtract(named, short)).max() > 1e-4


def test_rollout_by_name_starts_as_predict_does(acting: Engine) -> None:
    history = {"z_cls": latents(2).tolist(), "actions": ["noop", None]}
    body = {"z_cls": Z, "actions": ["turn_left", "wait"], "history": history}
    answer = ask(acting, "POST", "/rollout", body).json()
    assert set(answer) == {"z_cls_seq", "z_patches_seq", "mrr_seq", "uncertainty_seq", "timestamp"}
    assert np.shape(answer["z_cls_seq"]) == (2, WIDTH)
    first = predicted(acting, action="turn_left", history=history)
    np.testing.assert_allclose(answer["z_cls_seq"][0], first, atol=1e-5)
    # The step just made is history for the next, and the oldest frame is forgotten.
    onward = {
        "z_cls": [history["z_cls"][1], Z],
        "actions": [None, "turn_left"],
    }
    answer_2 = ask(
        acting, "POST", "/predict", {"z_cls": first, "action": "noop", "history": onward}
    ).json()
    np.testing.assert_allclose(answer["z_cls_seq"][1], answer_2["z_cls_pred"], atol=1e-4)


def test_requests_of_different_histories_do_not_mix(acting: Engine) -> None:
    runtime = Runtime(ServiceConfig(), acting)
    bodies = [
        {"z_cls": Z, "action": VOCABULARY[i % 5]}
        | ({"history": {"z_cls": latents(i % 3).tolist(), "actions": ["noop"] * (i % 3)}}
           if i % 3 else {})
        for i in range(12)
    ]  # fmt: skip

    async def call() -> list[Any]:
        transport = httpx.ASGITransport(create_app(runtime.config, runtime))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
            answers = await asyncio.gather(*(http.post("/predict", json=b) for b in bodies))
            return [answer.json()["z_cls_pred"] for answer in answers]

    together = asyncio.run(call())
    runtime.close()
    for body, answer in zip(bodies, together, strict=True):
        alone = ask(acting, "POST", "/predict", body).json()["z_cls_pred"]
        np.testing.assert_allclose(answer, alone, atol=1e-4)


@pytest.mark.parametrize(
    ("path", "body", "line"),
    [
        ("/predict", {}, "aug_params or action: expected one of the two"),
        ("/rollout", {}, "aug_seq or actions: expected one of the two"),
        ("/predict", {"action": "fly"}, "action: expected one of noop, move_forward, turn_left, "),
        ("/predict", {"action": 3}, "action: Input should be a valid string"),
        ("/predict", {"aug_params": [0.0] * (A + 1)}, f"aug_params: expected at most {A} numbers"),
        (
            "/predict",
            {"action": "noop", "aug_params": [0.0] * 17},
            "aug_params: expected at most 16 numbers",
        ),
        ("/rollout", {"actions": []}, "actions: List should have at least 1 item"),
        ("/rollout", {"actions": ["noop", None]}, "actions.1: Input should be a valid string"),
        ("/rollout", {"actions": ["noop"] * 257}, "actions: expected at most 256 actions"),
        (
            "/rollout",
            {"actions": ["noop"], "aug_seq": [[0.0], [0.0]]},
            "aug_seq: expected as many as actions, 1, given 2",
        ),
        (
            "/predict",
            {"action": "noop", "history": {"z_cls": [Z] * 3, "actions": ["noop"] * 3}},
            "history: this model takes at most 2 earlier frames, given 3",
        ),
        (
            "/predict",
            {"action": "noop", "history": {"z_cls": [Z], "actions": ["noop"] * 2}},
            "history.actions: expected one for each of the 1 latents, given 2",
        ),
        (
            "/predict",
            {"action": "noop", "history": {"z_cls": [[1.0]], "actions": ["noop"]}},
            f"history.z_cls: expected rows of {WIDTH} numbers, given 1",
        ),
        (
            "/predict",
            {"action": "noop", "history": {"z_cls": [Z]}},
            "history: actions or aug_seq: expected one of the two",
        ),
        (
            "/predict",
            {"action": "noop", "history": {"z_cls": [Z], "actions": ["fly"]}},
            "history.actions: expected one of noop",
        ),
    ],
)
def test_what_is_wrong_is_a_422_that_names_the_field(
    acting: Engine, path: str, body: dict[str, Any], line: str
) -> None:
    answer = ask(acting, "POST", path, {"z_cls": Z, **body})
    assert answer.status_code == 422, answer.text
    assert answer.json()["detail"].startswith(line)


def test_a_model_without_names_says_so(engine: Engine) -> None:
    latent = [0.1] * WIDTH
    answer = ask(engine, "POST", "/predict", {"z_cls": latent, "action": "noop"})
    assert answer.status_code == 422
    assert answer.json()["detail"].startswith("action: this model knows no actions by name")
    past = {"z_cls": [latent], "aug_seq": [[0.0]]}
    answer = ask(
        engine, "POST", "/predict", {"z_cls": latent, "aug_params": [0.0], "history": past}
    )
    assert answer.json()["detail"] == "history: this model takes none, given 1"


def test_the_card_tells_what_can_be_sent(acting: Engine, engine: Engine) -> None:
    card = ask(acting, "GET", "/model").json()
    assert card["vocabulary"] == list(VOCABULARY)
    assert (card["aug_dim"], card["augmentation_dim"], card["history"]) == (A, 16, HISTORY - 1)
    assert ask(engine, "GET", "/model").json()["vocabulary"] is None


def test_a_damaged_action_model_is_one_line(tmp_path: Path) -> None:
    from iwm.errors import ModelError

    folder = write_action_model(tmp_path / "m")
    (folder / "model.safetensors").write_bytes(b"\x80\x04pickle")
    with pytest.raises(ModelError, match=r"model\.safetensors: cannot be read"):
        Engine.load(folder, "cpu")

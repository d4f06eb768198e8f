"""Plans, surprise, both streams: the engine's answers, and the service's over tiny models."""

from __future__ import annotations

import asyncio
import base64
import io
from itertools import product
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from tinymodel import (
    AUG_DIM,
    CALIBRATION,
    HISTORY,
    PATCHES,
    VOCABULARY,
    WIDTH,
    write_action_model,
    write_model,
)

from iwm.files import write_json
from iwm.serving.app import Runtime, create_app
from iwm.serving.config import Limits, ServiceConfig
from iwm.serving.engine import Earlier, Engine
from iwm.serving.plan import Abandoned, Search

COMBINED = {
    "temperature": 0.5,
    "scale": {"distance": 2.5, "relative": 1.1, "action": 1.3, "combined": 0.6},
}


@pytest.fixture(scope="module")
def acting(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    folder = write_action_model(tmp_path_factory.mktemp("model") / "acting")
    tables = {**CALIBRATION, "surprise": COMBINED}
    write_json(folder / "calibration.json", {**tables, "history": tables})
    return Engine.load(folder, "cpu")


@pytest.fixture(scope="module")
def streams(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Engine]:
    root = tmp_path_factory.mktemp("streams")
    return {
        name: Engine.load(write_model(root / name, seed), "cpu")
        for seed, name in enumerate(("invariant", "equivariant"), 1)
    }


def ask(
    engine: Engine,
    path: str,
    body: Any = None,
    streams: Any = None,
    limits: Limits | None = None,
    **request: Any,
) -> httpx.Response:
    runtime = Runtime(ServiceConfig(limits=limits or Limits()), engine, streams)

    async def call() -> httpx.Response:
        transport = httpx.ASGITransport(create_app(runtime.config, runtime))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
            return await http.post(path, **({"json": body} if body is not None else request))

    try:
        return asyncio.run(call())
    finally:
        runtime.close()


def latent(seed: int) -> Any:
    return np.random.default_rng(seed).standard_normal(WIDTH).astype(np.float32)


Z, GOAL = latent(0).tolist(), latent(1).tolist()
SMALL = {"horizon": 3, "candidates": 40, "iterations": 4}


def png(seed: int = 0) -> bytes:
    noise = np.random.default_rng(seed).integers(0, 256, (40, 56, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "PNG")
    return buffer.getvalue()


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


# -- plans -----------------------------------------------------------------------------


def distances(engine: Engine, names: tuple[str, ...], goal: Any) -> float:
    rolled = engine.rollout(latent(0)[None], engine.action_vector(names)[None]).z_cls[0]
    return float(np.sqrt(((rolled - goal) ** 2).mean(-1)).mean())


def test_a_plan_is_the_nearest_of_all_sequences(acting: Engine) -> None:
    goal = latent(1)
    found = acting.plan(Search(latent(0), goal, "goal", VOCABULARY, horizon=3))
    costs = {names: distances(acting, names, goal) for names in product(VOCABULARY, repeat=3)}
    best = min(costs, key=lambda names: costs[names])
    assert found.actions == best
    assert found.score == pytest.approx(-costs[best], abs=1e-5)
    assert [score for _, score in found.runners_up] == pytest.approx(
        [-cost for cost in sorted(costs.values())[1:5]], abs=1e-5
    )
    rolled = acting.rollout(latent(0)[None], acting.action_vector(best)[None])
    np.testing.assert_allclose(found.z_cls, rolled.z_cls[0], atol=1e-5)
    assert rolled.uncertainty is not None
    np.testing.assert_allclose(found.uncertainty, rolled.uncertainty[0], atol=1e-5)


def test_a_search_beyond_its_budget_is_better_than_chance(acting: Engine) -> None:
    goal = latent(1)
    found = acting.plan(Search(latent(0), goal, "goal", VOCABULARY, 6, 64, 6))
    generator = np.random.default_rng(0)
    drawn = [tuple(generator.choice(VOCABULARY, 6).tolist()) for _ in range(100)]
    assert -found.score <= min(distances(acting, names, goal) for names in drawn) + 1e-6


def test_plan_has_every_key_and_the_seed_decides(acting: Engine) -> None:
    body = {"z_cls": Z, "goal_z_cls": GOAL, "horizon": 5, "candidates": 30, "iterations": 3}
    answer = ask(acting, "/plan", body).json()
    assert set(answer) == {
        "actions",
        "score",
        "runners_up",
        "z_cls_seq",
        "uncertainty_seq",
        "milliseconds",
        "timestamp",
    }
    assert len(answer["actions"]) == len(answer["uncertainty_seq"]) == 5
    assert np.shape(answer["z_cls_seq"]) == (5, WIDTH)
    scores = [answer["score"], *(one["score"] for one in answer["runners_up"])]
    assert scores == sorted(scores, reverse=True)
    again = ask(acting, "/plan", body).json()
    assert (again["actions"], again["score"]) == (answer["actions"], answer["score"])


def test_a_goal_may_be_an_image(acting: Engine) -> None:
    pixels = acting.preprocess.decode(png(3), 10**6)
    goal = acting.encode(pixels[None]).z_cls[0].tolist()
    by_image = ask(acting, "/plan", {"z_cls": Z, "goal_image_b64": b64(png(3)), **SMALL}).json()
    by_latent = ask(acting, "/plan", {"z_cls": Z, "goal_z_cls": goal, **SMALL}).json()
    assert by_image["actions"] == by_latent["actions"]
    assert by_image["score"] == pytest.approx(by_latent["score"], abs=1e-4)


def test_scorings_without_a_goal_are_opposites(acting: Engine) -> None:
    answers = {
        name: ask(acting, "/plan", {"z_cls": Z, "scoring": name, **SMALL}).json()
        for name in ("certainty", "curiosity")
    }
    assert answers["certainty"]["score"] <= 0 <= answers["curiosity"]["score"]
    surer, bolder = (np.mean(one["uncertainty_seq"]) for one in answers.values())
    assert surer <= bolder


def test_a_plan_uses_the_actions_it_may_in_the_clients_words(acting: Engine) -> None:
    allowed = ["wait", "turn_left"]  # `wait` is this vocabulary's `noop`
    body = {"z_cls": Z, "goal_z_cls": GOAL, "actions": allowed, **SMALL}
    answer = ask(acting, "/plan", body).json()
    used = {name for one in (answer, *answer["runners_up"]) for name in one["actions"]}
    assert used == set(allowed)
    one = ask(acting, "/plan", {**body, "actions": ["attack"]}).json()
    assert one["actions"] == ["attack"] * 3
    assert one["runners_up"] == []


def test_history_reaches_the_plan(acting: Engine) -> None:
    body = {"z_cls": Z, "goal_z_cls": GOAL, **SMALL}
    past = {"z_cls": [latent(7).tolist(), latent(8).tolist()], "actions": ["attack", None]}
    without = ask(acting, "/plan", body).json()["score"]
    assert ask(acting, "/plan", {**body, "history": past}).json()["score"] != without


def test_a_search_that_nobody_waits_for_ends(acting: Engine) -> None:
    asked: list[int] = []

    def abandoned() -> bool:
        asked.append(1)
        return len(asked) > 2

    wanted = Search(latent(0), latent(1), "goal", VOCABULARY, 8, 16, 50, abandoned=abandoned)
    with pytest.raises(Abandoned):
        acting.plan(wanted)
    assert len(asked) == 3


def test_a_search_past_the_time_limit_is_503_and_ends(acting: Engine) -> None:
    runtime = Runtime(ServiceConfig(limits=Limits(timeout_s=0.3)), acting)

    async def scenario() -> list[httpx.Response]:
        transport = httpx.ASGITransport(create_app(runtime.config, runtime))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
            long = {"z_cls": Z, "goal_z_cls": GOAL, "horizon": 60, "candidates": 80}
            return [await http.post("/plan", json={**long, "iterations": 50})]

    (answer,) = asyncio.run(scenario())
    runtime.close()  # waits for the search's thread
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/predict", {"action": "attack"}),
        ("/rollout", {"actions": ["attack"] * 3}),
        ("/plan", {"goal_z_cls": GOAL, **SMALL}),
        ("/surprise", {"action": "attack", "z_cls_prev": [3e38] * WIDTH}),
    ],
)
def test_latents_beyond_all_measure_are_422(acting: Engine, path: str, body: Any) -> None:
    answer = ask(acting, path, {"z_cls": [3e38, -3e38] * (WIDTH // 2), **body})
    assert (answer.status_code, "no finite numbers" in answer.text) == (422, True), answer.text


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"goal_z_cls": None}, "expected a goal or a scoring"),
        ({"goal_image_b64": "AAAA"}, "expected one of the two"),
        ({"scoring": "curiosity"}, "scoring: 'curiosity' takes no goal"),
        ({"scoring": "fame"}, "scoring: "),
        ({"horizon": 0}, "horizon: "),
        ({"horizon": 65}, "horizon: expected at most 64, given 65"),
        ({"horizon": "8"}, "horizon: "),
        ({"candidates": 10**9}, "candidates: expected at most 1024"),
        ({"iterations": 51}, "iterations: expected at most 50, given 51"),
        ({"horizon": 64, "candidates": 1000, "iterations": 40}, "given 2560000"),
        ({"seed": -1}, "seed: "),
        ({"seed": 2**63}, "seed: "),
        ({"actions": []}, "actions: "),
        ({"actions": ["fly"]}, "actions: expected one of noop, move_forward"),
        ({"z_cls": [1.0]}, "z_cls: expected 16 numbers, given 1"),
        ({"goal_z_cls": [1.0, 2.0]}, "goal_z_cls: expected 16 numbers, given 2"),
        ({"goal_z_cls": None, "goal_image_b64": "*"}, "goal_image_b64: expected base64"),
        ({"goal_z_cls": None, "goal_image_b64": "AAAA"}, "goal_image_b64: "),
        ({"history": {"z_cls": [Z] * HISTORY, "actions": ["noop"] * HISTORY}}, "at most 2 earlier"),
    ],
)
def test_bad_plans_name_the_field(acting: Engine, change: Any, words: str) -> None:
    answer = ask(acting, "/plan", {"z_cls": Z, "goal_z_cls": GOAL, **change})
    assert (answer.status_code, words in answer.json()["detail"]) == (422, True), answer.text


def test_a_model_without_named_actions_cannot_plan(engine: Engine) -> None:
    answer = ask(engine, "/plan", {"z_cls": Z, "goal_z_cls": GOAL})
    assert (answer.status_code, "cannot plan" in answer.text) == (422, True)


# -- surprise --------------------------------------------------------------------------


def test_surprise_is_distance_on_the_calibrations_scale(engine: Engine) -> None:
    body = {"z_cls_prev": Z, "aug_params": [0.5, 0.3], "z_cls": GOAL}
    answer = ask(engine, "/surprise", body).json()
    assert set(answer) == {
        "surprise",
        "threshold",
        "surprising",
        "calibrated",
        "measure",
        "timestamp",
    }
    action = np.zeros((1, AUG_DIM), np.float32)
    action[0, :2] = 0.5, 0.3
    predicted = engine.predict(latent(0)[None], action).z_cls[0]
    distance = float(np.linalg.norm(predicted - latent(1)))
    assert answer["surprise"] == pytest.approx(2.5 * distance, rel=1e-4)
    assert (answer["threshold"], answer["calibrated"]) == (2.0, True)
    assert answer["surprising"] == (2.5 * distance > 2.0)
    none = ask(engine, "/surprise", {**body, "z_cls": predicted.tolist()}).json()
    assert none["surprise"] == pytest.approx(0.0, abs=1e-3)
    assert not none["surprising"]


def test_another_actions_outcome_is_more_surprising(acting: Engine) -> None:
    came = acting.predict(latent(0)[None], acting.action_vector(["attack"])).z_cls[0].tolist()
    body = {"z_cls_prev": Z, "z_cls": came}
    by_name = {
        name: ask(acting, "/surprise", {**body, "action": name}).json() for name in VOCABULARY
    }
    assert {one["measure"] for one in by_name.values()} == {"combined"}
    assert min(by_name, key=lambda name: by_name[name]["surprise"]) == "attack"
    # Where nothing else could have been done, no other action explains it better.
    alone = ask(acting, "/surprise", {**body, "action": "noop", "actions": ["noop"]}).json()
    assert alone["surprise"] < by_name["noop"]["surprise"]


def test_surprise_is_what_evaluation_calibrated(acting: Engine) -> None:
    """The formula, written out: p(action | what came) and the distance that was expected."""
    came = latent(5)
    tried = [acting.predict(latent(0)[None], acting.action_vector([n])) for n in VOCABULARY]
    distance = np.array([np.linalg.norm(one.z_cls[0] - came) for one in tried])
    expected = np.interp(
        np.exp([one.log_error[0] for one in tried]),
        CALIBRATION["error"]["predicted"],
        CALIBRATION["error"]["measured"],
    )
    logit = -0.5 * (distance / (0.5 * expected.mean())) ** 2
    posterior = np.exp(logit - logit.max())
    posterior /= posterior.sum()
    place = VOCABULARY.index("attack")
    wanted = 0.6 * (1.1 * distance[place] / expected[place] - 1.3 * np.log(posterior[place]))
    body = {"z_cls_prev": Z, "z_cls": came.tolist(), "action": "attack"}
    answer = ask(acting, "/surprise", body).json()
    assert answer["surprise"] == pytest.approx(wanted, rel=1e-3)


def test_what_came_may_be_an_image_and_history_counts(acting: Engine) -> None:
    pixels = acting.preprocess.decode(png(3), 10**6)
    came = acting.encode(pixels[None]).z_cls[0].tolist()
    past = {"z_cls": [latent(7).tolist()], "actions": ["attack"]}
    body = {"z_cls_prev": Z, "action": "noop"}
    image = ask(acting, "/surprise", {**body, "image_b64": b64(png(3))}).json()
    given = ask(acting, "/surprise", {**body, "z_cls": came}).json()
    assert image["surprise"] == pytest.approx(given["surprise"], rel=1e-3)
    before = ask(acting, "/surprise", {**body, "z_cls": came, "history": past}).json()
    assert before["surprise"] != pytest.approx(given["surprise"], rel=1e-6)


def test_surprises_are_batched_as_they_are_alone(acting: Engine) -> None:
    states, came = (
        np.stack([latent(i) for i in range(4)]),
        np.stack([latent(9 + i) for i in range(4)]),
    )
    names = ["noop", "attack", "turn_left", "noop"]
    claimed = np.array([VOCABULARY.index(name) for name in names])
    among = tuple(range(len(VOCABULARY)))
    past = Earlier(states[:, None], np.zeros((4, 1, acting.aug_dim), np.float32))
    actions = acting.action_vector(names)
    for history in (None, past):
        together = acting.surprise(states, actions, came, among, claimed, history).value
        for i in range(4):
            own = None if history is None else Earlier(past.z_cls[[i]], past.actions[[i]])
            alone = acting.surprise(
                states[[i]], actions[[i]], came[[i]], among, claimed[[i]], own
            ).value
            assert alone[0] == pytest.approx(together[i], rel=1e-4)


def test_without_a_calibration_surprise_is_the_plain_distance(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m")
    (folder / "calibration.json").unlink()
    body = {"z_cls_prev": Z, "aug_params": [0.5], "z_cls": GOAL}
    answer = ask(Engine.load(folder, "cpu"), "/surprise", body).json()
    assert (answer["threshold"], answer["calibrated"], answer["surprising"]) == (None, False, False)
    assert answer["surprise"] > 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"action": None}, "aug_params or action: expected one of the two"),
        ({"z_cls": None}, "z_cls or image_b64: expected exactly one"),
        ({"image_b64": "AAAA"}, "z_cls or image_b64: expected exactly one"),
        ({"action": "fly"}, "action: expected one of noop"),
        ({"actions": ["attack"]}, "actions: expected them to hold the action 'noop'"),
        ({"z_cls_prev": [1.0]}, "z_cls_prev: expected 16 numbers"),
        ({"z_cls": [1.0]}, "z_cls: expected 16 numbers"),
        ({"z_cls": None, "image_b64": b64(b"GIF89a")}, "image: "),
    ],
)
def test_bad_surprises_name_the_field(acting: Engine, change: Any, words: str) -> None:
    body = {"z_cls_prev": Z, "action": "noop", "z_cls": GOAL, **change}
    answer = ask(acting, "/surprise", body)
    assert (answer.status_code, words in answer.json()["detail"]) == (422, True), answer.text


# -- both streams ----------------------------------------------------------------------


def test_both_streams_see_one_image(acting: Engine, streams: dict[str, Engine]) -> None:
    data = png(4)
    wanted = {
        name: engine.encode(engine.preprocess.decode(data, 10**6)[None])
        for name, engine in streams.items()
    }
    for request in (
        {"body": {"image_b64": b64(data), "return_patches": True}},
        {"content": data, "headers": {"Content-Type": "image/png"}},
    ):
        answer = ask(acting, "/encode_dual", streams=streams, **request).json()
        assert set(answer) == {
            "semantic",
            "equivariant",
            "semantic_patches",
            "equivariant_patches",
            "semantic_variant",
            "equivariant_variant",
            "timestamp",
        }
        for key, name in (("semantic", "invariant"), ("equivariant", "equivariant")):
            np.testing.assert_allclose(answer[key], wanted[name].z_cls[0], atol=1e-4)
            assert answer[f"{key}_variant"] == name
            if "body" in request:
                assert np.shape(answer[f"{key}_patches"]) == (PATCHES, WIDTH)
            else:
                assert answer[f"{key}_patches"] is None


def test_a_service_without_streams_says_what_it_has(acting: Engine) -> None:
    answer = ask(acting, "/encode_dual", {"image_b64": b64(png())})
    assert answer.status_code == 404
    assert answer.json()["detail"].endswith("it holds action")

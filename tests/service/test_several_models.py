"""Several models behind one real service, and a champion that moves while it answers."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tinymodel import VOCABULARY, WIDTH, write_action_model, write_model, write_phase

from iwm.client import SyncIWMClient
from iwm.config import RegisterConfig, load_params
from iwm.errors import ServiceError
from iwm.files import write_json
from pipelines._served import Served, served
from pipelines.package import fetch
from pipelines.register import register

ROOT = Path(__file__).resolve().parents[2]
PIXELS = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    root = tmp_path_factory.mktemp("models")
    write_action_model(root / "action")
    for seed, phase in enumerate(("core", "invariant", "equivariant")):
        write_json(write_model(root / phase, seed) / "card.json", {"phase": phase})
    environ = {"IWM_MODEL_PATH": str(root), "IWM_DEVICE": "cpu", "PYTHONPATH": str(ROOT)}
    with served("bentos.iwm:IWM", tmp_path_factory.mktemp("run"), environ=environ) as running:
        yield running


def test_an_agent_sees_plans_and_notices(service: Served) -> None:
    with SyncIWMClient(service.url) as client:
        card = client.model()
        assert (card.model_variant, card.streams) == ("action", ("invariant", "equivariant"))
        assert card.vocabulary == VOCABULARY
        now, goal = client.encode_image(PIXELS).z_cls, client.encode_image(PIXELS[::-1]).z_cls
        plan = client.plan(now, goal, horizon=4, actions=["move_forward", "wait"])
        assert set(plan.actions) <= {"move_forward", "wait"}
        assert plan.z_cls_seq.shape == (4, WIDTH)
        by_image = client.plan(
            now, goal_image=PIXELS[::-1], horizon=4, actions=["move_forward", "wait"]
        )
        assert by_image.actions == plan.actions
        step = client.predict_next(now, action="attack")
        none = client.surprise(now, step.z_cls_pred, action="attack")
        some = client.surprise(now, image=PIXELS[::-1], action="attack")
        assert none.surprise < some.surprise
        assert none.calibrated
        dual = client.encode_dual(PIXELS)
        assert (dual.semantic_variant, dual.equivariant_variant) == card.streams
        assert np.abs(dual.semantic - dual.equivariant).max() > 1e-3
        with pytest.raises(ServiceError, match="422: actions: expected one of noop"):
            client.plan(now, goal, actions=["fly"])
        text = client._http.get("/metrics").text
        assert 'iwm_latency_seconds_count{call="plan"}' in text


def test_a_plan_does_not_hold_up_those_who_encode(service: Served) -> None:
    """The largest search that is allowed runs into the time limit; others are answered."""
    refused: list[str] = []
    with SyncIWMClient(service.url) as client, SyncIWMClient(service.url, retries=0) as other:
        now = client.encode_image(PIXELS).z_cls

        def search() -> None:
            try:
                other.plan(now, scoring="curiosity", horizon=64, candidates=130, iterations=30)
            except ServiceError as error:
                refused.append(str(error))

        searching = threading.Thread(target=search)
        searching.start()
        answered = 0
        while searching.is_alive():
            client.predict_next(now, action="attack")
            answered += 1
        assert answered > 1
        assert all("503: busy" in line for line in refused)
        assert client.health()["status"] == "ok"


@pytest.mark.slow
def test_the_champion_moves_and_no_request_is_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    monkeypatch.chdir(tmp_path)
    for variable in [name for name in os.environ if name.startswith("IWM_")]:
        monkeypatch.delenv(variable)
    (tmp_path / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    write_phase(tmp_path, seed=0)
    register("core")
    package = replace(load_params().package, phase="core")
    fetch(package, RegisterConfig(), tmp_path / "served")
    environ = {
        "IWM_MODEL_PATH": str(tmp_path / "served"),
        "IWM_DEVICE": "cpu",
        "IWM_REGISTRY_POLL_S": "0.5",
        "PYTHONPATH": str(ROOT),
    }
    wrong: list[str] = []
    seen: set[str] = set()
    done = threading.Event()

    def ask(url: str) -> None:
        with SyncIWMClient(url, retries=0) as client:
            while not done.is_set():
                try:
                    latent = client.encode_image(PIXELS).z_cls
                    client.predict_next(latent, [0.5])
                    seen.add(repr(round(float(latent[0]), 3)))
                except ServiceError as error:
                    wrong.append(str(error))

    with served("bentos.iwm:IWM", tmp_path, environ=environ) as running:
        askers = [threading.Thread(target=ask, args=(running.url,)) for _ in range(3)]
        for asker in askers:
            asker.start()
        try:
            with SyncIWMClient(running.url) as client:
                assert client.model().version == "1"
                write_phase(tmp_path, seed=1, mrr=0.6)
                assert register("core")["champion"] == "2"
                deadline = time.monotonic() + 240
                while client.model().version != "2":
                    assert time.monotonic() < deadline, (tmp_path / "serve.log").read_text()
                    time.sleep(0.2)
                after = client._http.post(
                    "/predict", json={"z_cls": [0.1] * WIDTH, "aug_params": [0]}
                )
                assert after.headers["x-iwm-model"] == "iwm/2"
                assert "iwm_reloads_total 1" in client._http.get("/metrics").text
        finally:
            done.set()
            for asker in askers:
                asker.join()
    assert wrong == []
    assert len(seen) == 2  # both models answered, and nothing in between

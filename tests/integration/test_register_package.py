"""Registry and packaging, against a real MLflow store, a real MLflow server, a real Bento."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest
from fixtures import write_store
from postgresserver import postgres_server
from tinymodel import SIZE, WIDTH, write_phase

from iwm.client import SyncIWMClient
from iwm.config import load_params
from iwm.errors import GateFailed, IwmError, ModelError, ServiceError, TrackingError
from iwm.files import read_json, write_json
from pipelines._champion import fetch_moved, required_champion
from pipelines._mlflow import configure
from pipelines._served import free_port, served
from pipelines.package import fetch, package
from pipelines.register import register

ROOT = Path(__file__).resolve().parents[2]


def edit(path: Path, **changes: object) -> None:
    write_json(path, {**read_json(path), **changes})


def test_first_version_is_champion_and_carries_its_evidence(checkout: Path) -> None:
    digest = write_phase(checkout)
    result = register("core")
    assert (result["model"], result["version"], result["alias"]) == ("iwm", "1", "champion")
    assert result["champion"] == "1"
    assert read_json(checkout / "artifacts/registry/core.json") == result

    version = configure().get_model_version_by_alias("iwm", "champion")
    assert version.tags["weights_sha256"] == digest
    assert version.tags["gate"] == "passed"
    assert json.loads(version.tags["gate.rules"])[0]["figure"] == "mrr.model"
    assert float(version.tags["figure.mrr.model.mean"]) == 0.5
    assert version.tags["profile"] == "cpu"
    assert version.tags["data_revision"] == "1" * 32
    assert "mrr.model" in version.description

    import mlflow

    fetched = Path(mlflow.artifacts.download_artifacts("models:/iwm@champion"))
    assert sorted(path.name for path in (fetched / "artifacts/model").iterdir()) == [
        "calibration.json",
        "card.json",
        "config.json",
        "gate.json",
        "metrics.json",
        "model.safetensors",
    ]
    assert not [path for path in fetched.rglob("*") if path.suffix in (".pkl", ".pickle")]
    loaded = mlflow.pyfunc.load_model("models:/iwm@champion")
    latents = loaded.predict(np.zeros((2, 48, 64, 3), np.uint8))
    assert latents.shape == (2, WIDTH)
    assert SIZE != 48


def test_the_same_weights_again_are_the_same_version(checkout: Path) -> None:
    write_phase(checkout)
    assert register("core") | {"reason": ""} == register("core") | {"reason": ""}
    assert len(configure().search_model_versions("name='iwm'")) == 1


def test_champion_moves_only_to_a_model_that_is_no_worse(checkout: Path) -> None:
    write_phase(checkout, seed=0, mrr=0.5)
    register("core")
    write_phase(checkout, seed=1, mrr=0.4)
    worse = register("core")
    assert (worse["alias"], worse["champion"]) == ("challenger", "1")
    assert "worse than the champion's 0.5" in worse["reason"]
    write_phase(checkout, seed=2, mrr=0.5)
    equal = register("core")
    assert (equal["alias"], equal["champion"], equal["version"]) == ("champion", "3", "3")
    client = configure()
    assert client.get_model_version_by_alias("iwm", "challenger").version == 2
    assert client.get_model_version("iwm", "2").tags["decision"].startswith("challenger: ")


def test_figures_of_another_profile_are_not_compared(checkout: Path) -> None:
    write_phase(checkout, seed=0, mrr=0.9, profile="smoke")
    register("core")
    write_phase(checkout, seed=1, mrr=0.4)
    other = register("core")
    assert other["alias"] == "champion"
    assert "not compared" in other["reason"]


def test_what_has_not_passed_is_refused(checkout: Path) -> None:
    with pytest.raises(ModelError, match=r"model\.safetensors: not found"):
        register("core")
    write_phase(checkout, passed=False)
    with pytest.raises(GateFailed, match=r"the gate failed: mrr\.model missed by"):
        register("core")
    write_phase(checkout)
    gate = checkout / "reports/gates/core.json"
    edit(gate, weights_sha256="f" * 64)
    with pytest.raises(GateFailed, match="of weights ffffffffffff, the model has"):
        register("core")
    edit(gate, rules=[])
    with pytest.raises(GateFailed, match="checks nothing"):
        register("core")
    gate.unlink()
    with pytest.raises(GateFailed, match="not found"):
        register("core")
    write_phase(checkout)
    (checkout / "artifacts/evaluation/core/calibration.json").write_text("{")
    with pytest.raises(ModelError, match="not JSON"):
        register("core")
    assert not (checkout / "artifacts/registry/core.json").exists()


def test_the_figure_compared_must_be_there(checkout: Path) -> None:
    write_phase(checkout)
    edit(checkout / "reports/metrics/core.json", mrr={})
    with pytest.raises(TrackingError, match=r"no figure 'mrr\.model\.mean'"):
        register("core")


def test_a_store_that_cannot_be_opened_is_one_line(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_phase(checkout)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://u:secret@127.0.0.1:{free_port()}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(IwmError) as caught:
        register("core")
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_the_registry_page_shows_it(checkout: Path) -> None:
    write_phase(checkout)
    register("core")
    port = free_port()
    server = subprocess.Popen(
        [sys.executable, "-m", "pipelines.mlflow_ui", "--port", str(port)],
        cwd=checkout,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        url = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + 180
        with httpx.Client(base_url=url, timeout=10) as http:
            while True:
                try:
                    assert http.get("/health").status_code == 200
                    break
                except httpx.TransportError:
                    assert server.poll() is None
                    assert time.monotonic() < deadline
                    time.sleep(0.2)
            found = http.get(
                "/api/2.0/mlflow/registered-models/alias",
                params={"name": "iwm", "alias": "champion"},
            ).json()["model_version"]
            assert found["version"] == "1"
            tags = {tag["key"]: tag["value"] for tag in found["tags"]}
            assert tags["gate"] == "passed"
            assert "<html" in http.get("/").text
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """URL of an empty database."""
    with postgres_server() as server:
        yield f"postgresql+psycopg://{server}/postgres"


@pytest.mark.slow
def test_postgres_by_url(checkout: Path, postgres: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", postgres)
    write_phase(checkout)
    assert register("core")["alias"] == "champion"
    assert register("core")["version"] == "1"
    card = required_champion("iwm", "core", checkout / "fetched-model")
    assert (card["version"], card["alias"]) == ("1", "champion")


FILES = [
    "bank.json",
    "calibration.json",
    "card.json",
    "config.json",
    "gate.json",
    "metrics.json",
    "model.safetensors",
]


@pytest.mark.slow
def test_package_serves_the_champions_from_anywhere(checkout: Path) -> None:
    digest = write_phase(checkout)
    for seed, phase in enumerate(("invariant", "equivariant"), 1):
        write_phase(checkout, phase, seed=seed)
    write_store(checkout / "artifacts/shards")
    for phase in ("core", "invariant", "equivariant"):
        register(phase)
    params = load_params()
    result = package(replace(params.package, phase="core"), params.register)
    assert read_json(checkout / "artifacts/package.json") == result
    assert result["tag"].startswith("iwm:")
    assert (result["model_version"], result["weights_sha256"]) == ("1", digest)
    assert set(result["models"]) == {"core", "invariant", "equivariant"}
    assert set(result["smoke"]["p50_ms"]) == {
        "encode",
        "predict",
        "rollout",
        "surprise",
        "encode_dual",
    }
    left = subprocess.run(["pgrep", "-f", result["tag"]], capture_output=True, check=False)
    assert not left.stdout.strip()  # no orphan of the service

    bento = next((checkout / "bentoml/bentos/iwm").glob("*/src"))
    assert read_json(bento / "model/models.json") == {"default": "core"}
    for phase in result["models"]:
        assert sorted(path.name for path in (bento / "model" / phase).iterdir()) == FILES
    assert (bento / "iwm/serving/engine.py").is_file()
    assert (bento / "iwm/serving/page/index.html").is_file()
    assert "torch==" in (bento / "requirements.txt").read_text()
    # The Bento runs its own copy of the code and needs nothing of the checkout.
    with (
        served("iwm:latest", checkout) as running,
        SyncIWMClient(running.url) as client,
    ):
        card = client.model()
        assert (card.name, card.version, card.alias) == ("iwm", "1", "champion")
        assert card.gate is not None
        assert card.gate["passed"] is True
        assert card.streams == ("invariant", "equivariant")
        assert client.predict_next([0.0] * WIDTH, [0.0]).mrr >= 0
    with (
        served("iwm:latest", checkout, environ={"IWM_MODEL_VARIANT": "invariant"}) as running,
        SyncIWMClient(running.url) as client,
    ):
        assert (client.model().name, client.model().model_variant) == (
            "iwm-invariant",
            "invariant",
        )


def test_models_are_laid_out_by_variant_within_a_bound(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = load_params()
    config = replace(params.package, phase="core")
    write_phase(checkout)
    register("core")
    cards = fetch(config, params.register, checkout / "one")
    assert list(cards) == ["core"]  # nothing else has a champion
    assert read_json(checkout / "one/models.json") == {"default": "core"}
    write_phase(checkout, "invariant")
    register("invariant")
    both = fetch(config, params.register, checkout / "two")
    assert both["invariant"]["phase"] == "invariant"
    monkeypatch.setattr("pipelines.package.MEGABYTE", 1000)
    with pytest.raises(
        ServiceError, match=r"\(core \d+, invariant \d+\), more than package.max_mb"
    ):
        fetch(replace(config, max_mb=10), params.register, checkout / "three")


def test_a_champion_that_moved_is_fetched_once(checkout: Path) -> None:
    write_phase(checkout, seed=0)
    register("core")
    folder = checkout / "empty"
    folder.mkdir()
    card = {"model": "iwm", "version": "1"}
    assert not fetch_moved(card, folder)
    assert not fetch_moved({"model": None, "version": None}, folder)
    assert not fetch_moved({"model": "iwm-action", "version": "1"}, folder)
    assert list(folder.iterdir()) == []
    write_phase(checkout, seed=1, mrr=0.6)
    register("core")
    assert fetch_moved(card, folder)
    newer = read_json(folder / "card.json")
    assert (newer["version"], newer["alias"]) == ("2", "champion")
    again = checkout / "again"
    again.mkdir()
    assert not fetch_moved(newer, again)


def test_packaging_without_a_champion_or_with_a_failed_gate_is_refused(checkout: Path) -> None:
    with pytest.raises(TrackingError, match="no champion of 'iwm'"):
        required_champion("iwm", "core", checkout / "one")
    write_phase(checkout)
    register("core")
    gate = next((checkout / "mlruns/artifacts").rglob("gate.json"))
    edit(gate, passed=False)
    with pytest.raises(GateFailed, match=r"iwm version 1: gate\.json: the gate failed"):
        required_champion("iwm", "core", checkout / "two")
    gate.unlink()
    with pytest.raises(GateFailed, match="not found"):
        required_champion("iwm", "core", checkout / "three")

"""The service as it is really run: BentoML, a worker process, HTTP over loopback."""

from __future__ import annotations

import asyncio
import base64
import http.client
import io
import json
import socket
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tinymodel import AUG_DIM, PATCHES, WIDTH, write_model

from iwm.client import IWMClient, SyncIWMClient
from iwm.errors import ServiceError
from iwm.serving.engine import Engine
from pipelines._served import Served, served

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def service(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    environ = {"IWM_MODEL_PATH": str(folder), "PYTHONPATH": str(ROOT)}
    with served("bentos.iwm:IWM", elsewhere, environ=environ) as running:
        yield running


def address(service: Served) -> tuple[str, int]:
    host, _, port = service.url.removeprefix("http://").partition(":")
    return host, int(port)


def noise_png() -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "PNG")
    return buffer.getvalue()


def test_a_client_of_the_older_service(service: Served) -> None:
    """/health, then 1.2 MB of base64 on the same connection, then predictions."""
    connection = http.client.HTTPConnection(*address(service), timeout=30)
    connection.request("GET", "/health")
    assert json.loads(connection.getresponse().read())["status"] == "ok"
    sock = connection.sock

    def post(path: str, body: object) -> dict[str, object]:
        data = json.dumps(body)
        connection.request("POST", path, data, {"Content-Type": "application/json"})
        response = connection.getresponse()
        answer = json.loads(response.read())
        assert response.status == 200, answer
        return dict(answer)

    image = base64.b64encode(noise_png()).decode()
    assert len(image) > 1_200_000
    encoded = post("/encode", {"image_b64": image, "return_patches": False})
    assert set(encoded) == {"z_cls", "z_patches", "timestamp", "latent_dim", "model_variant"}
    for length in range(2, AUG_DIM + 1):
        predicted = post("/predict", {"z_cls": encoded["z_cls"], "aug_params": [0.1] * length})
        assert set(predicted) == {
            "z_cls_pred",
            "z_patches_pred",
            "mrr",
            "uncertainty",
            "timestamp",
        }
    rolled = post(
        "/rollout", {"z_cls": encoded["z_cls"], "z_patches": None, "aug_seq": [[0.5, 0.3]] * 5}
    )
    assert set(rolled) == {"z_cls_seq", "z_patches_seq", "mrr_seq", "uncertainty_seq", "timestamp"}
    assert connection.sock is sock


def test_the_asynchronous_client(service: Served, folder: Path) -> None:
    engine = Engine.load(folder, "cpu")
    pixels = np.random.default_rng(1).integers(0, 256, (48, 64, 3), np.uint8)
    direct = engine.encode(np.stack([engine.preprocess(pixels)]))

    async def scenario() -> None:
        async with IWMClient(service.url) as client:
            encoded = await client.encode_image(pixels, return_patches=True)
            np.testing.assert_allclose(encoded.z_cls, direct.z_cls[0], atol=1e-4)
            assert encoded.z_patches is not None
            assert encoded.z_patches.shape == (PATCHES, WIDTH)
            step = await client.predict_next(encoded.z_cls, [0.5], encoded.z_patches)
            seen = await client.rollout(encoded.z_cls, [[0.5], [0.0, 1.0]][:1] * 3)
            assert seen.z_cls_seq.shape == (3, WIDTH)
            assert 0 <= step.mrr <= 1
            before = (await client.health())["total_predicts"]
            many = await asyncio.gather(
                *(client.predict_next(encoded.z_cls, [i / 40]) for i in range(40))
            )
            assert (await client.health())["total_predicts"] == before + 40
            alone = [(await client.predict_next(encoded.z_cls, [i / 40])) for i in (0, 39)]
            for one, other in zip((many[0], many[39]), alone, strict=True):
                np.testing.assert_allclose(one.z_cls_pred, other.z_cls_pred, atol=1e-4)
            assert client.total_errors == 0

    asyncio.run(scenario())


def test_the_synchronous_client_and_the_servers_reasons(service: Served) -> None:
    with SyncIWMClient(service.url) as client:
        with pytest.raises(ServiceError, match="403: image_path: reading files is switched off"):
            client.encode_image_path("/etc/passwd")
        with pytest.raises(ServiceError, match="422: aug_params: expected at most 16"):
            client.predict_next([0.0] * WIDTH, [0.0] * 17)
        assert client.total_errors == 2


@pytest.mark.parametrize(
    "raw",
    [
        b"POST /encode HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{",
        b"POST /encode HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n",
        b"POST /encode HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"nonsense\r\n\r\n",
    ],
    ids=["half-sent", "too large", "negative", "no HTTP"],
)
def test_broken_requests_leave_it_well(service: Served, raw: bytes) -> None:
    with socket.create_connection(address(service), timeout=10) as connection:
        connection.sendall(raw)
        connection.shutdown(socket.SHUT_WR)
        answer = connection.recv(200)
    assert not answer or answer.split()[1].startswith(b"4")
    with SyncIWMClient(service.url) as client:
        assert client.health()["status"] == "ok"


def test_probes_and_metrics(service: Served) -> None:
    with SyncIWMClient(service.url) as client:
        assert client._http.get("/livez").status_code == 200
        assert client._http.get("/readyz").status_code == 200
        assert "iwm_served_total" in client._http.get("/metrics").text
        unknown = client._http.get("/nothing")
        assert (unknown.status_code, set(unknown.json())) == (404, {"detail"})


@pytest.mark.slow
def test_missing_weights_are_said_not_hidden(tmp_path: Path) -> None:
    environ = {"IWM_MODEL_PATH": str(tmp_path / "none"), "PYTHONPATH": str(ROOT)}
    with (
        served("bentos.iwm:IWM", tmp_path, environ=environ) as running,
        SyncIWMClient(running.url, retries=0) as client,
    ):
        assert client.health()["status"] == "model_not_loaded"
        with pytest.raises(ServiceError, match=r"503: model not loaded: .*no such model folder"):
            client.predict_next([0.0], [0.0])


@pytest.mark.slow
def test_an_unknown_device_stops_the_start(folder: Path, tmp_path: Path) -> None:
    environ = {"IWM_MODEL_PATH": str(folder), "PYTHONPATH": str(ROOT), "IWM_DEVICE": "cuda:99"}
    with (
        pytest.raises(ServiceError, match="IWM_DEVICE: no device 'cuda:99'"),
        served("bentos.iwm:IWM", tmp_path, environ=environ),
    ):
        pass


@pytest.mark.slow
def test_a_token_guards_everything_but_the_probes(folder: Path, tmp_path: Path) -> None:
    environ = {
        "IWM_MODEL_PATH": str(folder),
        "PYTHONPATH": str(ROOT),
        "IWM_SERVICE_TOKEN": "secret",
    }
    with served("bentos.iwm:IWM", tmp_path, environ=environ) as running:
        with SyncIWMClient(running.url) as client:
            assert client.health()["status"] == "ok"
            assert client._http.get("/metrics").status_code == 401
            with pytest.raises(ServiceError, match="401: Authorization"):
                client.predict_next([0.0] * WIDTH, [0.0])
        with SyncIWMClient(running.url, token="secret") as client:
            assert client.predict_next([0.0] * WIDTH, [0.0]).z_cls_pred.shape == (WIDTH,)

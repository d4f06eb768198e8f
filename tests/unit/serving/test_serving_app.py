"""The HTTP application over a real (tiny) engine: keys, bad input, limits, hang-ups."""

from __future__ import annotations

import asyncio
import base64
import io
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import orjson
import pytest
from PIL import Image
from tinymodel import AUG_DIM, PATCHES, SIZE, WIDTH

from iwm.serving.app import Runtime, create_app
from iwm.serving.config import Limits, ServiceConfig, service_config
from iwm.serving.engine import Engine
from iwm.serving.limits import TokenMiddleware

JSON = {"Content-Type": "application/json"}


def client(runtime: Runtime) -> httpx.AsyncClient:
    app = create_app(runtime.config, runtime)
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")


def ask(engine: Engine | None, method: str, path: str, **request: Any) -> httpx.Response:
    """One call to a fresh service."""
    config = request.pop("config", ServiceConfig())
    runtime = Runtime(config, engine)

    async def call() -> httpx.Response:
        async with client(runtime) as http:
            return await http.request(method, path, **request)

    try:
        return asyncio.run(call())
    finally:
        runtime.close()


def picture(width: int = 64, height: int = 48, mode: str = "RGB", kind: str = "PNG") -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (height, width, len(mode)), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise.squeeze(), mode).save(buffer, kind)
    return buffer.getvalue()


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


LATENT = [0.1] * WIDTH
PATCH_LATENTS = [[0.1] * WIDTH] * PATCHES


def test_encode_has_every_key(engine: Engine) -> None:
    answer = ask(engine, "POST", "/encode", json={"image_b64": b64(picture())}).json()
    assert set(answer) == {"z_cls", "z_patches", "timestamp", "latent_dim", "model_variant"}
    assert (len(answer["z_cls"]), answer["z_patches"], answer["latent_dim"]) == (WIDTH, None, WIDTH)
    patches = ask(
        engine, "POST", "/encode", json={"image_b64": b64(picture()), "return_patches": True}
    ).json()["z_patches"]
    assert np.shape(patches) == (PATCHES, WIDTH)


def test_encode_is_the_engine(engine: Engine) -> None:
    data = picture()
    direct = engine.encode(np.stack([engine.preprocess.decode(data, 10**6)]))
    for request in (
        {"json": {"image_b64": b64(data)}},
        {"json": {"image_b64": "data:image/png;base64," + b64(data)}},
        {"content": data, "headers": {"Content-Type": "image/png"}},
    ):
        answer = ask(engine, "POST", "/encode", **request).json()
        np.testing.assert_allclose(answer["z_cls"], direct.z_cls[0], atol=1e-5)


def test_encode_answers_npy_when_asked(engine: Engine) -> None:
    for accept in ("application/octet-stream", "application/x-npy"):
        answer = ask(
            engine,
            "POST",
            "/encode?return_patches=true",
            content=picture(kind="JPEG"),
            headers={"Content-Type": "image/jpeg", "Accept": accept},
        )
        assert answer.headers["content-type"] == accept
        array = np.load(io.BytesIO(answer.content), allow_pickle=False)
        assert (array.shape, array.dtype) == ((1 + PATCHES, WIDTH), np.float32)


@pytest.mark.parametrize("length", range(2, AUG_DIM + 1))
def test_predict_takes_short_actions(engine: Engine, length: int) -> None:
    answer = ask(
        engine, "POST", "/predict", json={"z_cls": LATENT, "aug_params": [0.5] * length}
    ).json()
    assert set(answer) == {"z_cls_pred", "z_patches_pred", "mrr", "uncertainty", "timestamp"}
    padded = np.zeros((1, AUG_DIM), np.float32)
    padded[0, :length] = 0.5
    direct = engine.predict(np.array([LATENT], np.float32), padded)
    np.testing.assert_allclose(answer["z_cls_pred"], direct.z_cls[0], atol=1e-5)
    assert answer["z_patches_pred"] is None
    assert 0 <= answer["mrr"] <= 1
    assert answer["uncertainty"] >= 0


def test_rollout_has_every_key_and_feeds_itself(engine: Engine) -> None:
    body = {"z_cls": LATENT, "z_patches": PATCH_LATENTS, "aug_seq": [[0.1, 0.2]] * 3}
    answer = ask(engine, "POST", "/rollout", json=body).json()
    assert set(answer) == {"z_cls_seq", "z_patches_seq", "mrr_seq", "uncertainty_seq", "timestamp"}
    assert np.shape(answer["z_cls_seq"]) == (3, WIDTH)
    assert np.shape(answer["z_patches_seq"]) == (3, PATCHES, WIDTH)
    assert len(answer["mrr_seq"]) == len(answer["uncertainty_seq"]) == 3
    first = ask(
        engine,
        "POST",
        "/predict",
        json={"z_cls": LATENT, "z_patches": PATCH_LATENTS, "aug_params": [0.1, 0.2]},
    ).json()
    np.testing.assert_allclose(answer["z_cls_seq"][0], first["z_cls_pred"], atol=1e-5)
    second = ask(
        engine,
        "POST",
        "/predict",
        json={
            "z_cls": answer["z_cls_seq"][0],
            "z_patches": answer["z_patches_seq"][0],
            "aug_params": [0.1, 0.2],
        },
    ).json()
    np.testing.assert_allclose(answer["z_cls_seq"][1], second["z_cls_pred"], atol=1e-4)


def test_health_model_and_metrics(engine: Engine) -> None:
    health = ask(engine, "GET", "/health").json()
    assert set(health) == {
        "status",
        "model_loaded",
        "model_variant",
        "device",
        "uptime_seconds",
        "total_encodes",
        "total_predicts",
        "total_rollouts",
    }
    assert (health["status"], health["device"], health["model_variant"]) == ("ok", "cpu", "core")
    card = ask(engine, "GET", "/model").json()
    assert (card["latent_dim"], card["image_size"], card["version"]) == (WIDTH, [SIZE, SIZE], None)
    assert 'iwm_served_total{call="encode"} 0' in ask(engine, "GET", "/metrics").text


def test_without_weights_it_says_so() -> None:
    health = ask(None, "GET", "/health").json()
    assert (health["status"], health["model_loaded"]) == ("model_not_loaded", False)
    for path in ("/encode", "/predict", "/rollout"):
        answer = ask(None, "POST", path, json={})
        assert answer.status_code == 503
        assert "model not loaded" in answer.json()["detail"]


def animated_gif() -> bytes:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    return buffer.getvalue()


def bomb() -> bytes:
    buffer = io.BytesIO()
    Image.new("1", (8000, 5000)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    "data",
    [b"", b"\x89PNG\r\n\x1a\n", picture()[:200], animated_gif(), bomb(), b"GIF89a", b"<svg/>"],
    ids=["zero", "header", "truncated", "animated", "bomb", "short-gif", "svg"],
)
def test_bad_images_are_422(engine: Engine, data: bytes) -> None:
    for request in (
        {"json": {"image_b64": b64(data)}},
        {"content": data, "headers": {"Content-Type": "image/png"}},
    ):
        answer = ask(engine, "POST", "/encode", **request)
        assert answer.status_code == 422, answer.text
        assert "image" in answer.json()["detail"]


@pytest.mark.parametrize(("mode", "kind"), [("CMYK", "JPEG"), ("L", "PNG"), ("RGBA", "PNG")])
def test_unusual_images_are_taken(engine: Engine, mode: str, kind: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).convert(mode).save(buffer, kind)
    answer = ask(engine, "POST", "/encode", json={"image_b64": b64(buffer.getvalue())})
    assert answer.status_code == 200, answer.text


DEEP = b'{"z_cls":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
LONG = orjson.dumps({"z_cls": LATENT, "aug_seq": [[0.0]] * 100_000})


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("/predict", b"", 400, "expected JSON"),
        ("/predict", b"{", 400, "expected JSON"),
        ("/predict", b'{"z_cls": NaN}', 400, "expected JSON"),
        ("/predict", b"\xff\xfe", 400, "expected JSON"),
        ("/predict", DEEP, 400, "expected JSON"),
        ("/predict", b"[]", 422, "expected an object"),
        ("/predict", b"{}", 422, "z_cls"),
        ("/predict", b'{"z_cls": [1e39], "aug_params": [0]}', 422, "z_cls: expected finite"),
        ("/predict", b'{"z_cls": ["1"], "aug_params": [0]}', 422, "z_cls: expected a list of"),
        ("/predict", b'{"z_cls": [null], "aug_params": [0]}', 422, "z_cls: expected a list of"),
        ("/predict", b'{"z_cls": [[1]], "aug_params": [0]}', 422, "z_cls: expected a list of"),
        ("/predict", b'{"z_cls": 3, "aug_params": [0]}', 422, "given int"),
        ("/predict", b'{"z_cls": [1, 2], "aug_params": [0]}', 422, "z_cls: expected 16 numbers"),
        ("/rollout", LONG, 422, "aug_seq: expected at most 256 actions, given 100000"),
        ("/encode", b"{}", 422, "exactly one"),
        ("/encode", b'{"image_b64": "*"}', 422, "image_b64: expected base64"),
        ("/encode", b'{"image_b64": 3}', 422, "image_b64"),
        ("/encode", b'{"image_b64": "AAAA", "return_patches": "x"}', 422, "return_patches"),
        ("/encode", b'{"image_path": "/etc/passwd"}', 403, "switched off"),
    ],
)
def test_bad_bodies(engine: Engine, path: str, body: bytes, status: int, words: str) -> None:
    answer = ask(engine, "POST", path, content=body, headers=JSON)
    assert (answer.status_code, words in answer.json()["detail"]) == (status, True), answer.text


def test_wrong_shapes_name_the_field(engine: Engine) -> None:
    long = {"z_cls": LATENT, "aug_params": [0.0] * (AUG_DIM + 1)}
    answer = ask(engine, "POST", "/predict", json=long)
    assert answer.status_code == 422
    assert answer.json()["detail"] == (
        "aug_params: expected at most 16 numbers an action, given 17"
    )
    ragged = {"z_cls": LATENT, "aug_seq": [[0.0], [0.0, 1.0]]}
    assert "aug_seq" in ask(engine, "POST", "/rollout", json=ragged).json()["detail"]
    few = {"z_cls": LATENT, "z_patches": PATCH_LATENTS[:3], "aug_params": [0.0]}
    detail = ask(engine, "POST", "/predict", json=few).json()["detail"]
    assert detail == "z_patches: expected 16 x 16 numbers, given 3 x 16"


def test_rollouts_with_patches_are_bounded_by_their_answer(engine: Engine) -> None:
    limits = Limits(max_patch_numbers=2 * PATCHES * WIDTH)
    body = {"z_cls": LATENT, "z_patches": PATCH_LATENTS, "aug_seq": [[0.0]] * 3}
    config = ServiceConfig(limits=limits)
    answer = ask(engine, "POST", "/rollout", json=body, config=config)
    assert (answer.status_code, "at most 2 actions" in answer.text) == (422, True)


def test_large_bodies_are_413_whether_declared_or_not(engine: Engine) -> None:
    config = ServiceConfig(limits=Limits(max_body_bytes=1000))

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b"x" * 100

    for content in (b"x" * 1001, chunks()):
        answer = ask(engine, "POST", "/encode", content=content, headers=JSON, config=config)
        assert (answer.status_code, "at most 1000 bytes" in answer.text) == (413, True)


def test_slow_bodies_are_408(engine: Engine) -> None:
    async def trickle() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.sleep(30)

    config = ServiceConfig(limits=Limits(body_timeout_s=0.05))
    answer = ask(engine, "POST", "/encode", content=trickle(), headers=JSON, config=config)
    assert answer.status_code == 408


def test_image_path_stays_below_its_root(engine: Engine, tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "in").mkdir(parents=True)
    (root / "in/a.png").write_bytes(picture())
    (tmp_path / "secret.png").write_bytes(picture())
    (root / "link.png").symlink_to(tmp_path / "secret.png")
    (root / "inner.png").symlink_to(root / "in/a.png")
    (root / "loop").symlink_to(root / "loop")
    config = ServiceConfig(image_root=root)
    for path, status in (
        ("in/a.png", 200),
        ("inner.png", 200),
        (str(root / "in/a.png"), 200),
        ("../secret.png", 403),
        ("link.png", 403),
        ("/etc/passwd", 403),
        ("missing.png", 404),
        ("in", 404),
        ("loop", 404),
        ("a\0b", 422),
        ("x" * 5000, 404),
    ):
        answer = ask(engine, "POST", "/encode", json={"image_path": path}, config=config)
        assert (path, answer.status_code) == (path, status)
        assert status == 200 or set(answer.json()) == {"detail"}


def test_unknown_paths_and_methods_have_the_same_shape(engine: Engine) -> None:
    for method, path, status in (("GET", "/encode", 405), ("GET", "/nothing", 404)):
        answer = ask(engine, method, path)
        assert (answer.status_code, set(answer.json())) == (status, {"detail"})


@pytest.mark.parametrize(
    ("path", "token", "status"),
    [("/model", None, 401), ("/model", "no", 401), ("/model", "yes", 200), ("/health", None, 200)],
)
def test_token(engine: Engine, path: str, token: str | None, status: int) -> None:
    runtime = Runtime(ServiceConfig(), engine)
    app = TokenMiddleware(create_app(runtime.config, runtime), "yes")
    headers = {"Authorization": f"Bearer {token}"} if token else {}

    async def call() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://t") as h:
            return await h.get(path, headers=headers)

    answer = asyncio.run(call())
    runtime.close()
    assert answer.status_code == status
    assert status == 200 or set(answer.json()) == {"detail"}


def test_openapi_names_every_call(engine: Engine) -> None:
    paths = ask(engine, "GET", "/openapi.json").json()["paths"]
    calls = {"/encode", "/predict", "/rollout", "/encode_dual", "/plan", "/surprise"}
    calls |= {"/reconstruct", "/dream", "/imagine", "/intention"}
    assert calls | {"/health", "/model", "/metrics"} == set(paths)
    content: Sequence[str] = paths["/encode"]["post"]["requestBody"]["content"]
    assert set(content) == {"application/json", "image/png", "image/jpeg"}


def test_configuration_from_the_environment() -> None:
    config = service_config(
        {"IWM_SERVICE_PORT": "9000", "IWM_IMAGE_ROOT": "/data", "IWM_DEVICE": ""}
    )
    assert (config.port, config.image_root, config.device) == (9000, Path("/data"), "auto")

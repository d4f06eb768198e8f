"""``/reconstruct`` and ``/dream``, over HTTP inside this process."""

from __future__ import annotations

import asyncio
import base64
import io
import threading
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image, ImageSequence
from tinydreams import CONTEXT, SIZE, VOCABULARY, tiny_dreams, write_dreams
from tinymodel import write_model

from iwm.errors import ModelError
from iwm.serving.app import Runtime, create_app
from iwm.serving.config import Limits, ServiceConfig
from iwm.serving.dreaming import Dreamer
from iwm.serving.engine import Engine
from iwm.serving.models import load_models


def picture(mode: str = "RGB", size: tuple[int, int] = (48, 40), kind: str = "PNG") -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    image = Image.fromarray(pixels)
    if mode == "I;16":
        image = Image.fromarray(pixels[:, :, 0].astype(np.uint16) * 257)
    elif mode != "RGB":
        image = image.convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


IMAGE = b64(picture())


@pytest.fixture(scope="module")
def runtime(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Runtime:
    root = tmp_path_factory.mktemp("images")
    (root / "frame.png").write_bytes(picture())
    config = ServiceConfig(image_root=root, limits=Limits(max_dream_steps=6))
    return Runtime(config, engine, dreamer=Dreamer(tiny_dreams(), "cpu"))


def post(runtime: Runtime, path: str, *bodies: Any, **more: Any) -> list[httpx.Response]:
    async def scenario() -> list[httpx.Response]:
        transport = httpx.ASGITransport(create_app(runtime.config, runtime))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
            return [await http.post(path, json=body, **more) for body in bodies]

    return asyncio.run(scenario())


def pixels_of(text: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))


def test_a_reconstruction_holds_every_key(runtime: Runtime) -> None:
    (answer,) = post(runtime, "/reconstruct", {"image_b64": IMAGE})
    assert answer.status_code == 200, answer.text
    said = answer.json()
    assert set(said) == {
        *("image_b64", "psnr", "ssim", "tokens", "bits", "compression_ratio", "timestamp")
    }
    assert pixels_of(said["image_b64"]).shape == (SIZE, SIZE, 3)
    assert said["tokens"] == {"rows": 8, "columns": 8, "codes": 125}
    assert said["compression_ratio"] == pytest.approx(SIZE * SIZE * 24 / said["bits"])
    (by_path,) = post(runtime, "/reconstruct", {"image_path": "frame.png"})
    assert by_path.json()["image_b64"] == said["image_b64"]


@pytest.mark.parametrize("mode", ["L", "LA", "P", "1", "RGBA", "I;16", "CMYK"])
@pytest.mark.parametrize("size", [(1, 1), (7, 300), (SIZE, SIZE)])
def test_any_size_and_mode(runtime: Runtime, mode: str, size: tuple[int, int]) -> None:
    kind = "JPEG" if mode == "CMYK" else "PNG"
    data = picture(mode, size, kind)
    (answer,) = post(runtime, "/dream", {"image_b64": b64(data), "actions": ["noop"]})
    assert answer.status_code == 200, answer.text

    async def raw() -> httpx.Response:
        transport = httpx.ASGITransport(create_app(runtime.config, runtime))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
            headers = {"Content-Type": f"image/{kind.lower()}"}
            return await http.post("/reconstruct", content=data, headers=headers)

    assert asyncio.run(raw()).status_code == 200


def test_a_dream_in_pngs_and_as_a_gif(runtime: Runtime) -> None:
    body = {"image_b64": IMAGE, "actions": ["turn_left", "wait", "attack"], "seed": 2}
    pngs, gif, again = post(runtime, "/dream", body, {**body, "format": "gif"}, body)
    said = pngs.json()
    assert set(said) == {"frames_b64", "gif_b64", "actions", "milliseconds", "timestamp"}
    assert said["actions"] == ["turn_left", "noop", "attack"]
    assert said["gif_b64"] is None
    assert said["milliseconds"] > 0
    assert again.json()["frames_b64"] == said["frames_b64"]
    frames = [pixels_of(text) for text in said["frames_b64"]]
    assert {frame.shape for frame in frames} == {(SIZE, SIZE, 3)}
    moving = gif.json()
    assert moving["frames_b64"] is None
    film = Image.open(io.BytesIO(base64.b64decode(moving["gif_b64"])))
    shown = [np.asarray(one.convert("RGB")).astype(int) for one in ImageSequence.Iterator(film)]
    assert len(shown) == len(frames)
    assert np.abs(shown[0] - frames[0]).mean() < 16  # 256 colours of it


def test_several_images_are_a_past(runtime: Runtime) -> None:
    other = b64(picture(size=(64, 64)))
    body = {"images_b64": [other, IMAGE], "actions": ["noop"]}
    answers = post(
        runtime,
        "/dream",
        body,
        {**body, "past_actions": [None]},
        {**body, "past_actions": ["attack"]},
        {"image_b64": IMAGE, "actions": ["noop"]},
    )
    frames = [answer.json()["frames_b64"][0] for answer in answers]
    assert frames[0] == frames[1]  # not known is the default
    assert len(set(frames)) == 3


ACTIONS = {"actions": ["noop"]}


@pytest.mark.parametrize(
    ("path", "body", "line"),
    [
        ("/reconstruct", {}, "image_b64 or image_path: expected exactly one of the two"),
        ("/reconstruct", {"image_b64": "AAAA"}, "image: image: not an image"),
        ("/reconstruct", {"image_b64": 3}, "image_b64: "),
        ("/dream", {"image_b64": IMAGE}, "actions: Field required"),
        ("/dream", {"image_b64": IMAGE, "actions": []}, "actions: List should have at least 1"),
        ("/dream", ACTIONS, "image_b64 or images_b64: expected exactly one of the two"),
        ("/dream", {"image_b64": "AAAA", **ACTIONS}, "image_b64: image: not an image"),
        ("/dream", {"images_b64": [IMAGE, "AAAA"], **ACTIONS}, "images_b64.1: image: not an image"),
        ("/dream", {"image_b64": IMAGE, "actions": ["fly"]}, "actions: expected one of noop"),
        ("/dream", {"image_b64": IMAGE, **ACTIONS, "seed": -1}, "seed: "),
        ("/dream", {"image_b64": IMAGE, **ACTIONS, "format": "mp4"}, "format: "),
        (
            "/dream",
            {"image_b64": IMAGE, "actions": ["noop"] * 7},
            "actions: expected at most 6, given 7",
        ),
        (
            "/dream",
            {"images_b64": [IMAGE] * (CONTEXT + 1), **ACTIONS},
            f"images_b64: expected at most {CONTEXT} for this model, given {CONTEXT + 1}",
        ),
        (
            "/dream",
            {"images_b64": [IMAGE] * 2, "past_actions": [], **ACTIONS},
            "past_actions: expected 1, one from each image to the next, given 0",
        ),
        (
            "/dream",
            {"images_b64": [IMAGE] * 2, "past_actions": ["fly"], **ACTIONS},
            "past_actions: expected one of noop",
        ),
    ],
)
def test_what_cannot_be_served_names_its_field(
    runtime: Runtime, path: str, body: dict[str, Any], line: str
) -> None:
    (answer,) = post(runtime, path, body)
    assert answer.status_code == 422, answer.text
    assert answer.json()["detail"].startswith(line)


def test_a_service_without_such_a_model_says_what_is_missing(engine: Engine) -> None:
    without = Runtime(ServiceConfig(), engine)
    for path in ("/reconstruct", "/dream"):
        (answer,) = post(without, path, {"image_b64": IMAGE, "actions": ["noop"]})
        assert answer.status_code == 404
        assert answer.json() == {
            "detail": f"{path[1:]}: this service holds no generative model (vqvae-dynamics); "
            "it holds core"
        }


def test_whoever_stops_waiting_stops_the_dream(engine: Engine) -> None:
    dreamer = Dreamer(tiny_dreams(), "cpu")
    config = ServiceConfig(limits=Limits(timeout_s=0.2))
    runtime = Runtime(config, engine, dreamer=dreamer)
    steps, slow = [0], threading.Event()
    plain = dreamer.step

    def step(dream: Any, action: str) -> Any:
        steps[0] += 1
        slow.wait(0.1)
        return plain(dream, action)

    dreamer.step = step  # type: ignore[method-assign]
    (answer,) = post(runtime, "/dream", {"image_b64": IMAGE, "actions": ["noop"] * 32})
    assert answer.status_code == 503
    assert answer.headers["Retry-After"]
    runtime.close()  # waits for what is in work
    assert steps[0] < 32


def test_it_stands_beside_another_model(tmp_path: Path) -> None:
    write_model(tmp_path / "core")
    write_dreams(tmp_path / "vqvae-dynamics")
    models = load_models(ServiceConfig(model_path=tmp_path, device="cpu"))
    assert models.variant == "core"
    assert models.dreamer is not None
    assert models.dreamer.vocabulary == VOCABULARY
    assert set(models.cards()) == {"core", "vqvae-dynamics"}
    newer = Dreamer(tiny_dreams(1), "cpu")
    assert models.replaced({"vqvae-dynamics": newer}).dreamer is newer
    assert models.replaced({}).dreamer is models.dreamer
    for path, variant in ((tmp_path / "vqvae-dynamics", None), (tmp_path, "vqvae-dynamics")):
        config = ServiceConfig(model_path=path, model_variant=variant, device="cpu")
        with pytest.raises(ModelError, match="vqvae-dynamics is served beside a model of latents"):
            load_models(config)


def test_the_card_tells_of_it(runtime: Runtime, engine: Engine) -> None:
    async def cards() -> list[Any]:
        found = []
        for one in (runtime, Runtime(ServiceConfig(), engine)):
            transport = httpx.ASGITransport(create_app(one.config, one))
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
                found.append((await http.get("/model")).json()["generative"])
        return found

    told, nothing = asyncio.run(cards())
    assert nothing is None
    assert told["vocabulary"] == list(VOCABULARY)
    assert (told["context"], told["image_size"]) == (CONTEXT, [SIZE, SIZE])

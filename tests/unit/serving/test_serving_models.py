"""Several models, lower precision, untrained ones, and a newer champion taking over."""

from __future__ import annotations

import asyncio
import shutil
import threading
import time
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from tinymodel import VOCABULARY, WIDTH, write_action_model, write_model

from iwm.errors import ConfigError, ModelError, TrackingError
from iwm.files import read_json, write_json
from iwm.serving import precision
from iwm.serving.app import Runtime, create_app
from iwm.serving.config import ServiceConfig, service_config
from iwm.serving.engine import Engine
from iwm.serving.following import Follower
from iwm.serving.models import load_models
from iwm.serving.page.bank import read_bank, write_bank
from iwm.serving.plan import Search

LATENT = [0.1] * WIDTH


def card(folder: Path, phase: str, version: str = "1") -> Path:
    write_json(folder / "card.json", {"model": f"iwm-{phase}", "phase": phase, "version": version})
    return folder


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of four variants."""
    root = tmp_path_factory.mktemp("several")
    for seed, phase in enumerate(("core", "invariant", "equivariant")):
        card(write_model(root / phase, seed), phase)
    card(write_action_model(root / "action"), "action")
    return root


def config(path: Path | None, variant: str | None = None, **more: Any) -> ServiceConfig:
    return ServiceConfig(model_path=path, model_variant=variant, device="cpu", **more)


@pytest.mark.parametrize("variant", ["core", "invariant", "equivariant", "action"])
def test_the_variable_chooses_among_several(several: Path, variant: str) -> None:
    models = load_models(config(several, variant))
    assert (models.variant, models.main.name) == (variant, f"iwm-{variant}/1")
    assert tuple(models.streams) == ("invariant", "equivariant")
    if variant in models.streams:
        assert models.streams[variant] is models.main  # loaded once
    assert set(models.engines()) == {variant, "invariant", "equivariant"}  # and no other


def test_the_folder_may_say_which_answers(several: Path, tmp_path: Path) -> None:
    assert load_models(config(several)).variant == "action"
    for phase in ("core", "action"):
        (tmp_path / phase).symlink_to(several / phase)
    write_json(tmp_path / "models.json", {"default": "core"})
    models = load_models(config(tmp_path))
    assert (models.variant, models.streams) == ("core", {})
    (tmp_path / "models.json").write_text("[]")
    with pytest.raises(ModelError, match="names no default"):
        load_models(config(tmp_path))


def test_a_variant_that_is_not_there_is_said(several: Path) -> None:
    with pytest.raises(ModelError, match="no variant 'dreamer'; it holds action, core"):
        load_models(config(several, "dreamer"))
    with pytest.raises(ModelError, match="holds the variant 'core', not 'action'"):
        load_models(config(several / "core", "action"))
    assert load_models(config(several / "core", "core")).variant == "core"
    runtime = Runtime(config(several, "dreamer"))
    runtime.load()
    assert "no variant 'dreamer'" in runtime.reason
    runtime.close()


def test_untrained_models_are_asked_for_by_name() -> None:
    one, again = (load_models(config(Path("random"))) for _ in range(2))
    assert (one.variant, one.main.name) == ("action", "random-action/0")
    assert tuple(one.streams) == ("invariant", "equivariant")
    image = np.full((1, *one.main.preprocess.size, 3), 99, np.uint8)
    np.testing.assert_array_equal(one.main.encode(image).z_cls, again.main.encode(image).z_cls)
    assert load_models(config(Path("random"), "core")).variant == "core"
    assert one.main.calibration is None


# -- precision -------------------------------------------------------------------------


def test_bfloat16_is_close_in_everything_the_engine_does(several: Path) -> None:
    for variant in ("core", "action"):
        full = Engine.load(several / variant, "cpu")
        low = Engine.load(several / variant, "cpu", "bfloat16")
        assert low.numbers.precision == "bfloat16"
        assert next(low.model.parameters()).dtype == torch.bfloat16
        assert 0 < precision.relative_error(full, low) < 0.05
    z_cls = np.random.default_rng(0).standard_normal((2, WIDTH)).astype(np.float32)
    wanted = Search(z_cls[0], z_cls[1], "goal", VOCABULARY, 2)
    assert low.plan(wanted).score == pytest.approx(full.plan(wanted).score, rel=0.02)
    patches = low.encode(np.zeros((1, *low.preprocess.size, 3), np.uint8)).z_patches
    assert patches.dtype == np.float32


def test_bfloat16_is_left_off_where_it_is_slower_and_refused_where_it_is_wrong(
    several: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = Engine.load(several / "core", "cpu")
    monkeypatch.setattr(precision, "MAX_ERROR", 0.1)
    for low_ms, found in ((1.0, "bfloat16"), (3.0, "float32")):
        times = {"float32": 2.0, "bfloat16": low_ms}
        monkeypatch.setattr(precision, "encode_ms", lambda e, t=times: t[e.numbers.precision])
        chosen = precision.checked(full, "bfloat16")
        assert chosen.numbers.precision == found
        assert (chosen is full) == (found == "float32")
    monkeypatch.setattr(precision, "MAX_ERROR", 1e-6)
    with pytest.raises(ConfigError, match=r"IWM_PRECISION: bfloat16 moves latents by .*%, more"):
        precision.checked(full, "bfloat16")


def test_precision_is_one_of_two_words() -> None:
    assert service_config({"IWM_PRECISION": "bfloat16"}).precision == "bfloat16"
    with pytest.raises(ConfigError, match="precision"):
        service_config({"IWM_PRECISION": "int4"})


# -- following -------------------------------------------------------------------------


class Registry:
    """Versions of models by name, as ``fetch_moved`` brings them."""

    def __init__(self, root: Path) -> None:
        self.root, self.asked = root, 0
        self.versions: dict[str, str] = {}
        self.error: Exception | None = None

    def __call__(self, card_: Mapping[str, Any], folder: Path) -> bool:
        self.asked += 1
        if self.error:
            raise self.error
        version = self.versions.get(card_["model"], card_["version"])
        if version == card_["version"]:
            return False
        phase = card_["model"].removeprefix("iwm-")
        write = write_action_model if phase == "action" else write_model
        card(write(folder, int(version)), phase, version)
        return True


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path)


def test_what_moved_is_exchanged_and_the_old_is_released(several: Path, registry: Registry) -> None:
    runtime = Runtime(config(several, "action"))
    runtime.load()
    assert runtime.models is not None
    follower = Follower(runtime, registry, 60)
    assert not follower.look()
    old, kept = runtime.models.main, runtime.models.streams
    gone = weakref.ref(old)
    document = create_app(runtime.config, runtime).openapi
    assert document()["paths"]
    registry.versions["iwm-action"] = "2"
    assert follower.look()
    assert runtime.models.main.name == "iwm-action/2"
    assert runtime.models.streams == kept
    folder = runtime.models.main.folder
    assert folder is not None
    assert read_json(folder / "card.json")["version"] == "2"
    del old
    assert gone() is None  # by its count of references, no collector needed
    registry.versions["iwm-invariant"] = "5"
    assert follower.look()
    assert runtime.models.streams["invariant"].name == "iwm-invariant/5"
    registry.versions["iwm-action"] = "3"
    assert follower.look()
    assert not folder.exists()
    assert "iwm_reloads_total 3" in runtime.metrics.text({})
    runtime.close()


def test_the_one_that_takes_over_keeps_the_frames(
    several: Path, registry: Registry, tmp_path: Path
) -> None:
    shutil.copytree(several / "action", tmp_path / "action")
    runtime = Runtime(config(tmp_path, "action"))
    runtime.load()
    assert runtime.models is not None
    before = runtime.models.main
    images = list(np.random.default_rng(0).integers(0, 256, (3, 24, 32, 3), np.uint8))
    write_bank(tmp_path / "action", before, images, ["a", "b", "c"])
    kept = read_bank(before.folder, before.latent_dim)["frames"]
    registry.versions["iwm-action"] = "2"
    assert Follower(runtime, registry, 60).look()
    after = runtime.models.main
    assert after is not before
    found = read_bank(after.folder, after.latent_dim)
    assert found["why"] is None
    assert [(one["caption"], one["jpeg"]) for one in found["frames"]] == [
        (one["caption"], one["jpeg"]) for one in kept
    ]
    runtime.close()


def test_a_champion_that_cannot_be_served_changes_nothing(
    several: Path, registry: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    runtime = Runtime(config(several, "core"))
    runtime.load()
    before = runtime.models
    follower = Follower(runtime, registry, 0.01)
    registry.error = TrackingError("the registry is away")
    follower.start()
    while registry.asked < 3:
        time.sleep(0.01)
    registry.error = RuntimeError("a bug of the registry")
    asked = registry.asked
    while registry.asked < asked + 2:
        time.sleep(0.01)
    follower.stop()
    assert runtime.models is before
    assert "not taken over: the registry is away" in caplog.text
    assert "a bug of the registry" in caplog.text
    runtime.close()


def test_no_request_is_dropped_while_models_are_exchanged(
    several: Path, registry: Registry
) -> None:
    """Requests run through two exchanges; each is answered by one model, whole."""
    runtime = Runtime(config(several, "action"))
    runtime.load()
    follower = Follower(runtime, registry, 60)
    body = {"z_cls": LATENT, "action": "attack"}

    def expected(engine: Engine) -> Any:
        return engine.predict(
            np.array([LATENT], np.float32), engine.action_vector(["attack"])
        ).z_cls[0]

    assert runtime.models is not None
    by_name = {runtime.models.main.name: expected(runtime.models.main)}
    answers: list[httpx.Response] = []

    def move() -> None:
        for version in ("2", "3"):
            registry.versions["iwm-action"] = version
            follower.look()
            assert runtime.models is not None
            by_name[runtime.models.main.name] = expected(runtime.models.main)

    async def scenario() -> None:
        transport = httpx.ASGITransport(create_app(runtime.config, runtime))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
            mover = threading.Thread(target=move)
            mover.start()
            while mover.is_alive() or len(answers) % 5:
                answers.append(await http.post("/predict", json=body))
            answers.append(await http.post("/predict", json=body))

    asyncio.run(scenario())
    runtime.close()
    assert {answer.status_code for answer in answers} == {200}
    assert answers[-1].headers["x-iwm-model"] == "iwm-action/3"
    for answer in answers:
        np.testing.assert_allclose(
            answer.json()["z_cls_pred"], by_name[answer.headers["x-iwm-model"]], atol=1e-4
        )

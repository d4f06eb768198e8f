"""The status page, in a browser that is really started."""

from __future__ import annotations

import io
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright
from tinymodel import VOCABULARY, WIDTH, write_action_model

from iwm.files import write_json
from iwm.serving.engine import Engine
from iwm.serving.page.bank import write_bank
from pipelines._served import Served, served

ROOT = Path(__file__).resolve().parents[2]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
COLOURS = {"red": (200, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 200)}

expect.set_options(timeout=60_000)

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium here: the page cannot be seen as a person sees it"
)


def picture(colour: str, shade: int = 0) -> np.ndarray:
    image = np.tile(np.array(COLOURS[colour], np.uint8), (48, 64, 1))
    image[shade : shade + 16, 8:24] = 255 - image[shade : shade + 16, 8:24]
    return image


def model_with_bank(folder: Path) -> Path:
    """A model of actions, its card and its gate, and nine frames in three colours."""
    write_action_model(folder)
    write_json(
        folder / "card.json",
        {
            "model": "walk-tiny",
            "phase": "action",
            "version": "7",
            "alias": "champion",
            # What a file says is shown as text, whatever it holds.
            "profile": "<img src=x onerror=document.title='broken'>",
            "weights_sha256": "ab" * 32,
            "gate": {
                "gate": "action",
                "passed": True,
                "rules": [
                    {
                        "figure": "rollout.k1.margin_copy",
                        "value": 1.25,
                        "low": 1.06,
                        "high": 1.42,
                        "comparison": ">",
                        "threshold": 0.0,
                        "verdict": "pass",
                        "why": "nearer to the truth than the last real latent",
                    }
                ],
            },
        },
    )
    engine = Engine.load(folder, "cpu")
    frames = [(colour, shade) for colour in COLOURS for shade in (0, 8, 16)]
    write_bank(
        folder, engine, [picture(*frame) for frame in frames], [f"{c} {s}" for c, s in frames]
    )
    return folder


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = model_with_bank(tmp_path_factory.mktemp("model") / "walk-tiny")
    environ = {"IWM_MODEL_PATH": str(folder), "PYTHONPATH": str(ROOT)}
    scratch = tmp_path_factory.mktemp("page")
    with served("bentos.iwm:IWM", scratch, environ=environ, wait_s=300) as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        # A container has no user namespaces for its sandbox, and a small /dev/shm.
        found = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        yield found
        found.close()


@pytest.fixture
def page(browser: Browser, service: Served) -> Iterator[Page]:
    """The page, open; at the end nothing has complained and nothing came from elsewhere."""
    context = browser.new_context(viewport={"width": 1120, "height": 1400})
    tab = context.new_page()
    tab.set_default_timeout(60_000)
    complaints: list[str] = []
    asked: list[str] = []
    tab.on("console", lambda message: complaints.append(message.text))
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.on("request", lambda request: asked.append(request.url))
    tab.goto(service.url)
    yield tab
    assert [text for text in complaints if "status of 422" not in text] == []
    local = (service.url, "data:", "blob:")
    assert [url for url in asked if not url.startswith(local)] == []
    context.close()


def captions(page: Page, where: str) -> list[str]:
    return [
        text.split(maxsplit=1)[1] for text in page.locator(f"{where} figcaption").all_inner_texts()
    ]


def test_it_shows_the_model_its_gate_and_latencies(page: Page, service: Served) -> None:
    expect(page.locator("#state")).to_have_text("ok")
    expect(page.locator("h1")).to_have_text("walk-tiny")
    card = page.locator("#card").inner_text()
    assert "7, champion" in card
    assert all(name in card for name in VOCABULARY)
    assert "<img src=x" in card
    assert page.title() == "walk-tiny · iwm"
    expect(page.locator("#rules")).to_contain_text("rollout.k1.margin_copy")
    expect(page.locator("#gate-verdict")).to_have_text("action: passed, 1 rules")
    answer = httpx.post(service.url + "/predict", json={"z_cls": [0.1] * WIDTH, "action": "noop"})
    assert answer.status_code == 200
    row = page.locator("#latency tr", has_text="/predict")
    expect(row.locator("td").nth(1)).not_to_have_text("0")
    expect(row.locator("td").nth(3)).to_have_text(re.compile(r"^(> )?[0-9.]+$"))
    expect(page.locator("#trip")).to_contain_text("round trip")


def test_an_image_finds_its_like_and_an_action_moves_it(page: Page, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(picture("green", 8)).save(buffer, "PNG")
    expect(page.locator("#nearest-note")).to_contain_text("out of 9 frames")
    page.set_input_files(
        "#file", {"name": "seen.png", "mimeType": "image/png", "buffer": buffer.getvalue()}
    )
    expect(page.locator("#nearest figure")).to_have_count(6)
    assert captions(page, "#nearest")[0] == "green 8"
    expect(page.locator("#encoded-note")).to_contain_text(f"{WIDTH} numbers")
    assert page.locator("#nearest img").first.evaluate("image => image.naturalWidth") == 64
    page.get_by_role("button", name="turn left").click()
    expect(page.locator("#predicted-note")).to_contain_text("after turn left")
    expect(page.locator("#predicted figure")).to_have_count(6)
    shot = tmp_path / "page.png"
    page.screenshot(path=shot, full_page=True)
    assert len(np.unique(np.asarray(Image.open(shot).convert("L")))) > 50


def test_a_sample_frame_and_what_is_no_image(page: Page) -> None:
    expect(page.locator("#nearest-note")).to_contain_text("out of 9 frames")
    page.get_by_role("button", name="A sample frame").click()
    expect(page.locator("#nearest figure")).to_have_count(6)
    page.set_input_files(
        "#file", {"name": "seen.png", "mimeType": "image/png", "buffer": b"no picture"}
    )
    expect(page.locator("#try-error")).to_contain_text("image")

"""`iwm play` in a browser that is really started: keys pressed, pictures brought, frames seen."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from fixtures import ACTIONS, write_store
from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright
from tinydreams import write_dreams

from pipelines._served import free_port, stop

ROOT = Path(__file__).resolve().parents[2]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
PLACES = 2

expect.set_options(timeout=60_000)

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium here: the page cannot be seen as a person sees it"
)


def picture(mode: str = "RGB", size: tuple[int, int] = (90, 50)) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    image = Image.fromarray(pixels[:, :, 0].astype(np.uint16) * 257 if mode == "I;16" else pixels)
    buffer = io.BytesIO()
    (image if mode == "I;16" else image.convert(mode)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The app, running on untrained dreams of a game with the actions of the shards."""
    folder = tmp_path_factory.mktemp("play")
    write_dreams(folder / "model", vocabulary=ACTIONS)
    write_store(folder / "shards", steps=8)
    drawn = folder / "evaluation/vqvae-dynamics"
    drawn.mkdir(parents=True)
    (drawn / "true_and_dreamt.png").write_bytes(picture())
    port = free_port()
    log = folder / "play.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "pipelines.play", "--model", folder / "model"),
                *("--shards", folder / "shards", "--pictures", folder / "evaluation"),
                *("--port", str(port), "--device", "cpu", "--sessions", str(PLACES)),
            ],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        address = f"http://127.0.0.1:{port}/"
        deadline = time.monotonic() + 550
        while True:
            try:
                httpx.get(address, timeout=60).raise_for_status()
                break
            except httpx.HTTPError:
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.2)
        yield address
    finally:
        stop(process)
    assert "Traceback" not in log.read_text()


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
def page(browser: Browser, url: str) -> Iterator[Page]:
    """The page, open; at the end no script has failed and nothing went elsewhere."""
    context = browser.new_context(viewport={"width": 1200, "height": 900})
    tab = context.new_page()
    tab.set_default_timeout(60_000)
    failed: list[str] = []
    asked: list[str] = []
    tab.on("pageerror", lambda error: failed.append(str(error)))
    tab.on("request", lambda request: asked.append(request.url))
    tab.on("websocket", lambda socket: asked.append(socket.url.replace("ws:", "http:")))
    tab.goto(url)
    expect(tab.locator(".iwm-pads button")).to_have_count(len(ACTIONS))
    yield tab
    assert failed == []
    assert [one for one in asked if not one.startswith((url, "data:", "blob:"))] == []
    context.close()


def screen(page: Page) -> str:
    """What the canvas shows."""
    shown: str = page.locator(".iwm-screen").evaluate("canvas => canvas.toDataURL()")
    return shown


def begun(page: Page) -> str:
    """The caption of a start, once its frame is there."""
    expect(page.locator(".iwm-screen")).to_have_attribute("data-steps", "0")
    expect(page.locator(".iwm-caption")).to_contain_text("Begun from")
    return page.locator(".iwm-caption").inner_text()


def dreamt(page: Page) -> int:
    return int(page.locator(".iwm-count").inner_text())


def test_keys_move_the_dream(page: Page) -> None:
    begun(page)
    seen = [screen(page)]
    for key, action in (("ArrowLeft", "left"), ("d", "right")):
        before = dreamt(page)
        page.keyboard.down(key)
        page.wait_for_function(
            "before => +document.querySelector('.iwm-count').textContent > before + 2", arg=before
        )
        expect(page.locator(".iwm-held")).to_have_attribute("data-action", action)
        page.keyboard.up(key)
        expect(page.locator(".iwm-held")).to_have_count(0)
        expect(page.locator(".iwm-action")).to_have_text(action)
        seen.append(screen(page))
    assert len(set(seen)) == 3
    assert int(page.locator(".iwm-rate").inner_text()) >= 0
    page.wait_for_timeout(300)
    still = dreamt(page)
    page.wait_for_timeout(500)
    assert dreamt(page) == still  # nobody holds a key
    page.keyboard.press("ArrowUp")  # a tap is one step
    expect(page.locator(".iwm-action")).to_have_text("up")
    expect(page.locator(".iwm-count")).to_have_text(str(still + 1))
    page.keyboard.press("x")
    page.wait_for_timeout(200)
    assert dreamt(page) == still + 1  # no action's key


def test_buttons_move_it_and_it_begins_anew(page: Page) -> None:
    begun(page)
    first = screen(page)
    button = page.locator('.iwm-pads button[data-action="up"]')
    expect(button).to_contain_text("W")
    button.hover()
    page.mouse.down()
    page.wait_for_function("+document.querySelector('.iwm-count').textContent > 1")
    page.mouse.up()
    expect(page.locator(".iwm-action")).to_have_text("up")
    assert screen(page) != first
    page.get_by_role("button", name="Same start again").click()
    begun(page)
    assert screen(page) == first
    captions = set()
    for _ in range(12):  # another one of 32 frames, by chance
        page.get_by_role("button", name="New start").click()
        page.wait_for_timeout(150)
        captions.add(begun(page))
    assert len(captions) > 1


def test_time_goes_on_where_it_was_asked_to(page: Page) -> None:
    begun(page)
    page.locator(".iwm-running").check()
    page.wait_for_function("+document.querySelector('.iwm-count').textContent > 3")
    expect(page.locator(".iwm-action")).to_have_text("stay")


def test_more_visitors_than_places(page: Page, browser: Browser, url: str) -> None:
    begun(page)
    others = [browser.new_page() for _ in range(PLACES)]
    for other in others:
        other.set_default_timeout(60_000)
        other.goto(url)
    begun(others[0])
    expect(others[1].locator(".iwm-error")).to_have_text(
        f"all {PLACES} places to play are taken; try again later"
    )
    others[0].close()
    deadline = time.monotonic() + 60
    while others[1].locator(".iwm-error").is_visible():
        assert time.monotonic() < deadline
        others[1].get_by_role("button", name="New start").click()
        others[1].wait_for_timeout(300)
    begun(others[1])
    others[1].close()


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "I;16"])
def test_a_picture_of_any_mode_is_reconstructed(page: Page, mode: str) -> None:
    page.get_by_role("tab", name="Reconstruct").click()
    page.locator("#brought input[type=file]").set_input_files(
        {"name": "mine.png", "mimeType": "image/png", "buffer": picture(mode)}
    )
    told = page.locator("#figures dl")
    expect(told).to_contain_text("dB")
    expect(told).to_contain_text("your picture, 90 x 50, seen at 32 x 32")
    expect(told).to_contain_text("8 x 8, each one of 125")
    for name in ("original", "reconstruction", "error", "jpeg"):
        image = page.locator(f"#{name} img")
        expect(image).to_be_visible()
        page.wait_for_function(
            "name => document.querySelector(`#${name} img`).naturalWidth == 32", arg=name
        )


def test_a_held_out_frame_and_what_is_no_picture(page: Page) -> None:
    page.get_by_role("tab", name="Reconstruct").click()
    page.get_by_role("button", name="A held-out frame").click()
    expect(page.locator("#figures dl")).to_contain_text("SSIM")
    page.locator("#brought input[type=file]").set_input_files(
        {"name": "mine.png", "mimeType": "image/png", "buffer": b"\x89PNG\r\n\x1a\nno picture"}
    )
    expect(page.locator("#figures")).to_contain_text("your picture: broken or cut-off PNG")
    expect(page.locator("#reconstruction img")).to_have_count(0)


def test_the_gallery_and_a_narrow_window(page: Page) -> None:
    page.get_by_role("tab", name="Gallery").click()
    image = page.locator("#gallery img")
    expect(image).to_have_count(1)
    page.wait_for_function("document.querySelector('#gallery img').naturalWidth == 90")
    expect(page.locator("#gallery figcaption")).to_contain_text("true and dreamt")
    assert httpx.get(page.url + "pictures/vqvae/secret.png").status_code == 404
    page.set_viewport_size({"width": 380, "height": 800})
    for name in ("Play", "Gallery"):
        page.get_by_role("tab", name=name).click()
        page.wait_for_timeout(300)
        assert page.evaluate("document.documentElement.scrollWidth") <= 380


def test_its_answers_let_nothing_in_or_out(url: str) -> None:
    answer = httpx.get(url)
    assert "connect-src 'self'" in answer.headers["Content-Security-Policy"]
    assert "fonts.googleapis" not in answer.text

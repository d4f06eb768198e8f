"""Capture for real: an X server, a window that moves, keys pressed through XTest."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from iwm.errors import ConfigError
from iwm.gameplay.reader import iter_frames, read_steps
from iwm.gameplay.schema import NO_ACTION, read_recording
from iwm.gameplay.sources.capture import Held, read_mapping

needs_xvfb = pytest.mark.skipif(
    not shutil.which("Xvfb"), reason="Xvfb is not installed (apt-get install xvfb)"
)

# A window with a moving square; its background is red exactly while "w" is held, which the
# window itself presses and releases. The picture therefore says what the log must say.
GAME = """
import time
from Xlib import X, XK, display
from Xlib.ext import xtest
link = display.Display()
screen = link.screen()
window = screen.root.create_window(20, 10, 160, 120, 0, screen.root_depth,
    background_pixel=0x202020, override_redirect=True)
window.set_wm_name("Moving Square")
window.map()
brush = window.create_gc()
def paint(colour, left):
    brush.change(foreground=colour)
    window.fill_rectangle(brush, 0, 0, 160, 120)
    brush.change(foreground=0x00FF00)
    window.fill_rectangle(brush, left, 50, 20, 20)
    link.sync()
w = link.keysym_to_keycode(XK.string_to_keysym("w"))
link.sync()
print("ready", flush=True)
start = time.monotonic()
down, left = False, 0
while time.monotonic() - start < 60:
    wanted = int((time.monotonic() - start) / 0.4) % 2 == 1
    if wanted != down:
        xtest.fake_input(link, X.KeyPress if wanted else X.KeyRelease, w)
        xtest.fake_input(link, X.ButtonPress if wanted else X.ButtonRelease, 1)
        down = wanted
    left = (left + 3) % 140
    paint(0xD00000 if down else 0x202020, left)
    time.sleep(0.01)
"""


@pytest.fixture(scope="module")
def game_display() -> Iterator[str]:
    command = ["Xvfb", "-displayfd", "1", "-screen", "0", "320x240x24", "-nolisten", "tcp"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert server.stdout is not None
    display = f":{server.stdout.readline().strip()}"
    game = subprocess.Popen(
        [sys.executable, "-c", GAME],
        env={**os.environ, "DISPLAY": display},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert game.stdout is not None
        assert game.stdout.readline() == "ready\n"
        yield display
    finally:
        for process in (game, server):
            process.terminate()
            process.wait(20)


def run_capture(words: list[str], folder: Path, display: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pipelines.capture", *words, "--out", str(folder)],
        env={**os.environ, "DISPLAY": display},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@needs_xvfb
@pytest.mark.parametrize("codec", ["h264", "ffv1"])
def test_keys_are_logged_with_the_frames_that_show_them(
    tmp_path: Path, game_display: str, codec: str
) -> None:
    mapping = tmp_path / "actions.yaml"
    mapping.write_text("w+mouse.left: forward\n")
    words = ["play", "--window", "moving sq", "--seconds", "3", "--fps", "20", "--codec", codec]
    done = run_capture([*words, "--mapping", str(mapping)], tmp_path, game_display)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "play"
    recording = read_recording(folder)
    assert recording.complete
    assert (recording.width, recording.height) == (160, 120)
    assert recording.extra["region"] == [20, 10, 160, 120]
    steps = read_steps(folder).to_pylist()
    frames = [frame.image for frame in iter_frames(folder, recording)]
    assert len(steps) == len(frames) > 10
    assert len({frame.tobytes() for frame in frames if frame is not None}) > len(frames) // 2
    assert steps[-1]["action"] == NO_ACTION
    forward = recording.actions.index("forward")
    shown = [bool(frame[5, 80, 0] > 120) for frame in frames if frame is not None]
    logged = [step["action"] == forward for step in steps]
    assert any(shown)
    assert not all(shown)
    # What was held before the capture began is not seen going down: begin at the first turn.
    for i in range(shown.index(not shown[0]), len(shown) - 1):
        assert logged[i] in shown[max(0, i - 2) : i + 3], f"frame {i} of {shown} {logged}"
    # Not only near: the log turns as often as the picture.
    turns = [sum(a != b for a, b in pairwise(x)) for x in (shown, logged[:-1])]
    assert abs(turns[0] - turns[1]) <= 4
    events = [json.loads(line) for line in (folder / "input.jsonl").read_text().splitlines()]
    assert {event["key"] for event in events if "key" in event} == {"w", "mouse.left"}


@needs_xvfb
def test_what_cannot_be_captured_is_one_line(tmp_path: Path, game_display: str) -> None:
    for words, reason in [
        (["--window", "no such game"], "no visible window with 'no such game'"),
        (["--monitor", "7"], "no monitor 7"),
        (["--region", "900,0,50,50"], "at least 8x8 are needed"),
        (["--region", "1,2"], "expected LEFT,TOP,WIDTH,HEIGHT"),
    ]:
        done = run_capture(["play", "--seconds", "1", *words], tmp_path, game_display)
        assert done.returncode == 1
        assert done.stderr.count("\n") == 1
        assert reason in done.stderr


def test_without_a_display(tmp_path: Path) -> None:
    for display in ("", ":9871"):
        done = run_capture(["play", "--seconds", "1"], tmp_path, display)
        assert done.returncode == 1
        assert done.stderr.startswith("error: capture: no display")
        assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_tap_between_two_frames_is_kept() -> None:
    held = Held("f12", io.StringIO(), 0.0)
    held.key("w", True)
    held.key("space", True)
    held.key("space", False)
    assert held.take() == ("space", "w")
    assert held.take() == ("w",)
    held.key("!", True)
    held.key("1", False)
    assert held.take() == ("!", "w")
    assert held.take() == ("w",)
    assert not held.stop.is_set()
    held.key("f12", True)
    assert held.stop.is_set()


def test_a_mapping_is_read_in_any_order(tmp_path: Path) -> None:
    path = tmp_path / "m.yaml"
    path.write_text("W+Space: jump\n1: fire\n")
    assert read_mapping(path) == {"space+w": "jump", "1": "fire"}
    path.write_text("- x\n")
    with pytest.raises(ConfigError, match="expected lines like"):
        read_mapping(path)
    with pytest.raises(ConfigError, match="No such file"):
        read_mapping(tmp_path / "none")

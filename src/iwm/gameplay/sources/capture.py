"""Live capture: the screen, and the keys and mouse buttons held, while a person plays.

One loop on one clock grabs a frame every 1/fps seconds. The action of a frame is the
set of keys and buttons that were down at any moment between it and the next frame, so
the shortest tap is kept; by name, sorted, joined by ``+``: ``space+w``, ``mouse.left``,
or ``none``. A mapping gives combinations other names. Every event (mouse movement
too) also goes, with its time, to ``input.jsonl`` in the recording.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import IO, Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from iwm.errors import ConfigError, DataError
from iwm.gameplay.images import printable
from iwm.gameplay.schema import NO_ACTION, Recording, write_recording
from iwm.gameplay.sources.actionlog import IDLE
from iwm.gameplay.writer import RecordingWriter
from iwm.progress import Progress
from iwm.settings import settings

INPUT_LOG = "input.jsonl"
MIN_SIDE = 8


@settings
class CaptureConfig:
    """What to capture and how."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.-]{0,63}$")]
    game: str
    licence: str = "own recording"
    fps: Annotated[float, Field(ge=1, le=120)] = 20.0
    window: str | None = None
    """Part of the title of the window to capture (X11), where it stands at the start."""
    region: tuple[int, int, int, int] | None = None
    """Left, top, width, height in screen pixels."""
    monitor: Annotated[int, Field(ge=0)] = 1
    """0 is all monitors together."""
    seconds: Annotated[float, Field(gt=0)] | None = None
    stop_key: str = "f12"
    mapping: dict[str, str] = field(default_factory=dict)
    """Keys held (sorted, joined by ``+``) -> action name; what is not named keeps its own."""
    codec: Literal["h264", "ffv1"] = "h264"
    episode_seconds: Annotated[float, Field(ge=0)] = 30.0


@dataclass(frozen=True)
class Captured:
    """What a capture made."""

    folder: Path
    frames: int
    fps: float
    """Measured."""
    late: int
    """Frames left out because the machine was too slow for them."""
    actions: tuple[str, ...]


def read_mapping(path: Path) -> dict[str, str]:
    """Read a YAML mapping of key combinations to action names, keys put in sorted order.

    Raises:
        ConfigError: missing, not YAML, or not a mapping of names to names.
    """
    import yaml

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{printable(path)}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{printable(path)}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{printable(path)}: expected lines like `w+space: jump`")
    return {
        "+".join(sorted(str(keys).lower().split("+"))): str(action)
        for keys, action in values.items()
    }


class Held:
    """Which keys and buttons are down now, and were since last asked; used from any thread."""

    def __init__(self, stop_key: str, log: IO[str], started: float) -> None:
        self._lock = threading.Lock()
        self._down: set[str] = set()
        self._since: set[str] = set()
        self._stop_key, self._log, self._started = stop_key, log, started
        self.stop = threading.Event()

    def key(self, name: str, down: bool) -> None:
        """A key or button went down or up."""
        if name == self._stop_key:
            self.stop.set()
            return
        with self._lock:
            if down and name not in self._down:  # not the keyboard's auto-repeat
                self._down.add(name)
                self._since.add(name)
            elif not down:
                if name not in self._down:
                    # Shift was let go first: "!" went down, "1" comes up.
                    self._down = {held for held in self._down if len(held) > 1 or held.isalpha()}
                self._down.discard(name)
            else:
                return
            self._write({"key": name, "event": "down" if down else "up"})

    def move(self, x: int, y: int, scroll: tuple[int, int] | None = None) -> None:
        """The mouse moved or its wheel turned."""
        with self._lock:
            self._write({"x": x, "y": y} | ({"scroll": scroll} if scroll else {}))

    def take(self) -> tuple[str, ...]:
        """All that was down at any moment since the last call, sorted."""
        with self._lock:
            names = tuple(sorted(self._since | self._down))
            self._since = set(self._down)
            return names

    def _write(self, event: dict[str, Any]) -> None:
        if not self._log.closed:
            at = round(time.monotonic() - self._started, 4)
            self._log.write(json.dumps({"time": at, **event}) + "\n")
            self._log.flush()


def capture(data_dir: Path, cfg: CaptureConfig) -> Captured:
    """Capture until the stop key, Ctrl-C or ``cfg.seconds``.

    Raises:
        DataError: no display, no such window or monitor, or the recording exists already.
    """
    folder = data_dir / cfg.name
    if folder.exists():
        raise DataError(f"{printable(folder)}: exists already; choose another name")
    mss, pynput = _display()
    with mss.MSS() as screen:
        box = _box(screen, cfg)
        recording = Recording(
            name=cfg.name,
            source="capture",
            game=cfg.game,
            fps=cfg.fps,
            width=box["width"],
            height=box["height"],
            variable_frame_rate=True,
            actions=(),
            licence=cfg.licence,
            software={name: version(name) for name in ("iwm", "mss", "pynput")},
            extra={"region": [box[side] for side in ("left", "top", "width", "height")]},
        )
        total = round(cfg.seconds * cfg.fps) if cfg.seconds else None
        with (
            RecordingWriter(folder, recording, cfg.codec) as writer,
            (folder / INPUT_LOG).open("w", encoding="utf-8") as log,
        ):
            started = time.monotonic()
            held = Held(cfg.stop_key, log, started)
            with (
                _listen(pynput, held),
                Progress(f"capture (stop: {cfg.stop_key})", total, "frames") as progress,
            ):
                late = _loop(screen, box, writer, held, cfg, started, progress)
            elapsed = time.monotonic() - started
            writer.recording = dataclasses.replace(
                writer.recording, extra={**recording.extra, "late_frames": late}
            )
    return Captured(folder, writer.frames, writer.frames / elapsed, late, writer.recording.actions)


def _loop(
    screen: Any,
    box: dict[str, int],
    writer: RecordingWriter,
    held: Held,
    cfg: CaptureConfig,
    started: float,
    progress: Progress,
) -> int:
    """Grab frames on schedule; each is written when the next one closes its interval."""
    ids: dict[tuple[str, ...], int] = {}
    waiting: tuple[NDArray[np.uint8], float] | None = None
    tick, late, episode, step = 0, 0, 0, 0
    with contextlib.suppress(KeyboardInterrupt):
        while not held.stop.wait(max(0.0, started + tick / cfg.fps - time.monotonic())):
            now = time.monotonic() - started
            keys = held.take()
            if cfg.seconds is not None and now >= cfg.seconds:
                break
            shot = screen.grab(box)
            pixels = np.frombuffer(shot.bgra, np.uint8).reshape(shot.height, shot.width, 4)
            if waiting is not None:
                new = int(now // cfg.episode_seconds) if cfg.episode_seconds else 0
                action = NO_ACTION if new != episode else _action(ids, keys, writer, cfg.mapping)
                writer.append(waiting[0], episode, step, waiting[1], action, 0.0, False)
                episode, step = (new, 0) if new != episode else (episode, step + 1)
                progress.advance()
            waiting = (pixels[..., 2::-1], now)
            due = int((time.monotonic() - started) * cfg.fps)
            late += max(0, due - tick - 1)
            tick = max(tick + 1, due)
    if waiting is not None:
        writer.append(waiting[0], episode, step, waiting[1], NO_ACTION, 0.0, False)
    return late


def _action(
    ids: dict[tuple[str, ...], int],
    keys: tuple[str, ...],
    writer: RecordingWriter,
    mapping: dict[str, str],
) -> int:
    """The id of a combination; a new name joins the vocabulary on disk before it is used."""
    if keys not in ids:
        combination = "+".join(keys) or IDLE
        name = mapping.get(combination, combination)
        names = writer.recording.actions
        if name not in names:
            names = (*names, name)
            writer.recording = dataclasses.replace(writer.recording, actions=names)
            write_recording(writer.folder, writer.recording)
        ids[keys] = names.index(name)
    return ids[keys]


def _display() -> tuple[Any, Any]:
    if sys.platform.startswith("linux") and not os.environ.get("DISPLAY"):
        raise DataError("capture: no display: DISPLAY is not set; run this where the game is shown")
    try:
        import mss
        import pynput
        import pynput.keyboard
        import pynput.mouse

        with mss.MSS():
            pass
    except Exception as error:
        # Backends raise errors of their own kinds, at import, when there is no screen.
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"capture: no display: {os.environ.get('DISPLAY', '')}: {reason}") from None
    return mss, pynput


def _box(screen: Any, cfg: CaptureConfig) -> dict[str, int]:
    """Left, top, width and height in pixels, inside the screen, even for H.264."""
    everything = screen.monitors[0]
    if cfg.window is not None:
        left, top, width, height = _window(cfg.window)
    elif cfg.region is not None:
        left, top, width, height = cfg.region
    elif cfg.monitor < len(screen.monitors):
        chosen = screen.monitors[cfg.monitor]
        left, top, width, height = (chosen[side] for side in ("left", "top", "width", "height"))
    else:
        raise DataError(f"capture: no monitor {cfg.monitor}; there are {len(screen.monitors) - 1}")
    right = min(left + width, everything["left"] + everything["width"])
    bottom = min(top + height, everything["top"] + everything["height"])
    left, top = max(left, everything["left"]), max(top, everything["top"])
    width, height = right - left, bottom - top
    if cfg.codec == "h264":
        width, height = width // 2 * 2, height // 2 * 2
    if min(width, height) < MIN_SIDE:
        raise DataError(
            f"capture: {max(width, 0)}x{max(height, 0)} pixels of that are on the screen, "
            f"at least {MIN_SIDE}x{MIN_SIDE} are needed"
        )
    return {"left": left, "top": top, "width": width, "height": height}


def _window(title: str) -> tuple[int, int, int, int]:
    """Left, top, width, height of the topmost window whose title holds ``title``, any case."""
    if not sys.platform.startswith("linux"):
        raise DataError("capture: --window needs X11; use --region here")
    from Xlib import X, display, error

    connection = display.Display()
    try:
        root = connection.screen().root
        utf8 = connection.intern_atom("_NET_WM_NAME")
        for window in _descendants(root):
            with contextlib.suppress(error.XError):  # a window may vanish while we look
                value = window.get_full_property(utf8, X.AnyPropertyType)
                name = value.value if value else window.get_wm_name() or ""
                name = name.decode("utf-8", "replace") if isinstance(name, bytes) else name
                if title.lower() not in name.lower():
                    continue
                if window.get_attributes().map_state != X.IsViewable:
                    continue
                size = window.get_geometry()
                place = root.translate_coords(window, 0, 0)
                return place.x, place.y, size.width, size.height
    finally:
        connection.close()
    raise DataError(f"capture: no visible window with {title!r} in its title")


def _descendants(window: Any) -> Iterator[Any]:
    from Xlib import error

    with contextlib.suppress(error.XError):
        for child in reversed(window.query_tree().children):
            yield child
            yield from _descendants(child)


def _name(key: Any) -> str:
    name = getattr(key, "char", None) or getattr(key, "name", None) or str(key)
    name = str(name).lower()
    return {"+": "plus", " ": "space"}.get(name, name)


@contextlib.contextmanager
def _listen(pynput: Any, held: Held) -> Iterator[None]:
    """Keyboard and mouse listeners, up and running while the block runs."""
    keyboard = pynput.keyboard.Listener(
        on_press=lambda key: held.key(_name(key), True),
        on_release=lambda key: held.key(_name(key), False),
    )
    mouse = pynput.mouse.Listener(
        on_click=lambda _x, _y, button, down: held.key(f"mouse.{button.name}", down),
        on_move=lambda x, y: held.move(x, y),
        on_scroll=lambda x, y, dx, dy: held.move(x, y, (dx, dy)),
    )
    with keyboard, mouse:
        keyboard.wait()
        mouse.wait()
        yield

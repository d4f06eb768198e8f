"""Who plays while a recording is made."""

from __future__ import annotations

import os
import sys
import time
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np

from iwm.errors import ConfigError
from iwm.gameplay.config import RecordPlan
from iwm.gameplay.sources import Frame


class Policy(Protocol):
    """Chooses actions; told the seed at the start of every episode."""

    def reset(self, seed: int) -> None:
        """Begin an episode."""
        ...

    def choose(self, frame: Frame) -> int:
        """The action id to take after seeing ``frame``."""
        ...


class RandomHold:
    """A random action kept for a random number of steps, both uniform.

    Holding makes a random player go somewhere: single random steps cancel out.

    Args:
        actions: size of the vocabulary.
        hold_min: fewest steps for which an action is kept.
        hold_max: most steps; 1 chooses anew at every step.
    """

    def __init__(self, actions: int, hold_min: int, hold_max: int) -> None:
        if hold_max < hold_min:
            raise ConfigError(f"record: hold_max {hold_max} is below hold_min {hold_min}")
        self._actions, self._bounds = actions, (hold_min, hold_max + 1)

    def reset(self, seed: int) -> None:
        """Begin an episode."""
        self._rng = np.random.Generator(np.random.PCG64(seed))
        self._left = 0

    def choose(self, frame: Frame) -> int:  # noqa: ARG002
        """The action held, or a new one."""
        if self._left == 0:
            self._action = int(self._rng.integers(self._actions))
            self._left = int(self._rng.integers(*self._bounds))
        self._left -= 1
        return self._action


class Scripted:
    """Repeats a list of actions from the start of every episode.

    Args:
        actions: the vocabulary.
        script: action names.
    """

    def __init__(self, actions: tuple[str, ...], script: tuple[str, ...]) -> None:
        unknown = [name for name in script if name not in actions]
        if unknown or not script:
            what = f"unknown action {unknown[0]!r}" if unknown else "no actions given"
            raise ConfigError(f"record: script: {what}; the game has {', '.join(actions)}")
        self._script = [actions.index(name) for name in script]

    def reset(self, seed: int) -> None:  # noqa: ARG002
        """Begin at the first action."""
        self._turn = -1

    def choose(self, frame: Frame) -> int:  # noqa: ARG002
        """The next action of the script."""
        self._turn = (self._turn + 1) % len(self._script)
        return self._script[self._turn]


KEYS: dict[str, tuple[str, ...]] = {
    "up": ("move_forward", "forward", "up"),
    "down": ("move_backward", "down"),
    "left": ("turn_left", "left", "move_left"),
    "right": ("turn_right", "right", "move_right"),
    "a": ("move_left",),
    "d": ("move_right",),
    "space": ("attack", "fire", "toggle", "use", "jump"),
    "p": ("pickup",),
    "o": ("drop",),
}
"""Key -> the actions it may mean; the first that the game has. 0 to 9 give an action by id."""

_IDLE = ("noop", "wait", "done")


def bindings(actions: tuple[str, ...]) -> dict[str, int]:
    """Key name -> action id for a vocabulary."""
    keys = {str(number): number for number in range(min(10, len(actions)))}
    for key, names in KEYS.items():
        for name in names:
            if name in actions:
                keys[key] = actions.index(name)
                break
    return keys


class Keyboard:
    """A person plays: the key pressed last and still held decides, none means idle.

    Shows the game in a window of its own and keeps the game's own pace. Closing the
    window or pressing Escape ends the recording (:class:`StopIteration` is raised by
    :meth:`choose`). A context manager.

    Args:
        actions: the vocabulary; see :data:`KEYS` for what the keys mean.
        fps: steps a second.
        zoom: window pixels per frame pixel.

    Raises:
        ConfigError: there is no display or the keyboard cannot be read.
    """

    def __init__(self, actions: tuple[str, ...], fps: float, zoom: int = 4) -> None:
        self._keys = bindings(actions)
        self._idle = next((actions.index(name) for name in _IDLE if name in actions), 0)
        self._period, self._zoom = 1 / fps, zoom
        self._held: dict[str, int] = {}
        self._stopped = False

    def __enter__(self) -> Self:
        if sys.platform == "linux" and not os.environ.get("DISPLAY"):
            raise ConfigError("record: policy keyboard needs a display, and DISPLAY is not set")
        try:
            from pynput import keyboard
        except ImportError as error:
            reason = " ".join(str(error).split())
            raise ConfigError(f"record: policy keyboard: no keyboard here: {reason}") from None
        import pygame

        pygame.display.init()
        self._window: Any = None
        self._escape = keyboard.Key.esc
        self._listener = keyboard.Listener(on_press=self._press, on_release=self._release)
        self._listener.start()
        self._listener.wait()
        self._next = time.monotonic()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        import pygame

        self._listener.stop()
        pygame.display.quit()

    def _press(self, key: Any) -> None:
        if key == self._escape:
            self._stopped = True
        name = _key_name(key)
        if name in self._keys:
            self._held[name] = self._keys[name]

    def _release(self, key: Any) -> None:
        self._held.pop(_key_name(key), None)

    def reset(self, seed: int) -> None:
        """Nothing to draw: a person has no seed."""

    def choose(self, frame: Frame) -> int:
        """Show the frame, wait for the next step's time, return what is held down.

        Raises:
            StopIteration: the person has ended the game.
        """
        self._show(frame)
        self._next = max(self._next + self._period, time.monotonic())
        time.sleep(max(0.0, self._next - time.monotonic()))
        if self._stopped:
            raise StopIteration
        return next(reversed(list(self._held.values())), self._idle)

    def _show(self, frame: Frame) -> None:
        import pygame

        size = (frame.shape[1] * self._zoom, frame.shape[0] * self._zoom)
        if self._window is None:
            self._window = pygame.display.set_mode(size)
            pygame.display.set_caption("iwm record: arrows, space, 0-9; Escape ends")
        picture = pygame.image.frombuffer(frame.tobytes(), frame.shape[1::-1], "RGB")
        self._window.blit(pygame.transform.scale(picture, size), (0, 0))
        pygame.display.flip()
        if any(event.type == pygame.QUIT for event in pygame.event.get()):
            self._stopped = True


def _key_name(key: Any) -> str:
    """pynput's key as a name: ``"a"``, ``"up"``, ``"space"``."""
    return str(getattr(key, "char", None) or getattr(key, "name", "")).lower()


def automatic_policy(plan: RecordPlan, actions: tuple[str, ...]) -> Policy:
    """The policy that a plan names, for all but ``keyboard``.

    Raises:
        ConfigError: the plan's settings do not fit the game's actions.
    """
    if plan.policy == "scripted":
        return Scripted(actions, plan.script)
    if plan.policy == "random":
        return RandomHold(len(actions), 1, 1)
    return RandomHold(len(actions), plan.hold_min, plan.hold_max)

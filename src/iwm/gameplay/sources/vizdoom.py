"""ViZDoom: first-person 3D games with free assets, headless.

Scenarios and Freedoom's pictures come with the ``vizdoom`` package. An action is
one button held for ``frame_skip`` tics of 1/35 s, or none (``noop``).
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from iwm.errors import ConfigError, DataError
from iwm.gameplay.config import RecordPlan
from iwm.gameplay.sources import Frame, Mask, Outcome, Position

TICS_PER_SECOND = 35

NOOP = "noop"

# Actions where they differ from "noop and every button of the scenario". my_way_home has five
# with five different outcomes, so that they can be told apart by what they lead to.
_ACTIONS: dict[str, tuple[str, ...]] = {
    "my_way_home": (NOOP, "move_forward", "move_backward", "turn_left", "turn_right"),
}
# On the scenario's own skill a random player is dead in a second or two.
_SKILL: dict[str, int] = {"deadly_corridor": 1}
# Kinds of label that are no lasting objects: the player's own hands and weapon, bullet puffs, and
# flying blood. These go away by themselves.
_PASSING = {"Self", "Explosive", "Gibs"}
_SEEN = 0.01  # share of the frame that an object must fill to be missed
_FAR = 256.0  # map units; the player is 32 wide and walks about 60 in a step of 8 tics
# These wait for other players or need a sound device.
_UNPLAYABLE = {"cig", "cig_with_unknown", "multi_duel", "multi_deathmatch", "basic_audio"}


def scenarios() -> tuple[str, ...]:
    """Bundled scenarios that one player can play."""
    import vizdoom

    folder = Path(vizdoom.scenarios_path)
    maps = {file.stem for file in folder.glob("*.wad")}
    return tuple(sorted({file.stem for file in folder.glob("*.cfg")} & maps - _UNPLAYABLE))


def _resolution(width: int, height: int) -> Any:
    import vizdoom

    known = dict(vizdoom.ScreenResolution.__members__)
    try:
        return known[f"RES_{width}X{height}"]
    except KeyError:
        sizes = sorted(
            (name.removeprefix("RES_").lower() for name in known),
            key=lambda size: [int(part) for part in size.split("x")],
        )
        raise ConfigError(
            f"record: ViZDoom cannot draw {width}x{height}; it can draw {', '.join(sizes)}"
        ) from None


@dataclass(frozen=True)
class _State:
    """What leads to a state: the engine is deterministic, so that is the state."""

    seed: int
    actions: tuple[int, ...]


def _in_view(state: Any) -> dict[int, tuple[str, float]]:
    """Lasting objects that a frame shows: class and share of the frame, by number."""
    pixels = np.bincount(state.labels_buffer.ravel(), minlength=256) / state.labels_buffer.size
    return {
        label.object_id: (label.object_name, float(pixels[label.value]))
        for label in state.labels
        if label.object_category not in _PASSING
    }


def _shares(
    now: Mapping[int, tuple[str, float]], after: Mapping[int, tuple[str, float]]
) -> dict[str, float]:
    """Of each class, the share of the frame that its objects fill in both, at least."""
    share: dict[str, float] = {}
    for number in now.keys() & after.keys():
        name = now[number][0]
        share[name] = share.get(name, 0.0) + min(now[number][1], after[number][1])
    return share


class VizdoomSource:
    """One ViZDoom scenario.

    States are restored by playing the episode again from its seed. The
    engine's own ``save`` and ``load`` are not exact: saving plays two tics and loading one,
    with whatever is held at that moment, and buttons held across a load do nothing.

    Args:
        plan: which scenario, at which size and frame skip.
        branching: let the engine name the objects in view and take commands, which
            :meth:`remove_object` and :meth:`teleport` need; the pictures are the same.

    The game shows nothing once an episode is over, so the outcome of a last action
    has no frame. The scenario's time limit is off: the plan's counts.

    Raises:
        ConfigError: no such scenario or resolution.
        DataError: the engine does not start.
    """

    truth_schema: pa.Schema | None = None

    def __init__(self, plan: RecordPlan, *, branching: bool = False) -> None:
        import vizdoom

        if plan.game not in scenarios():
            raise ConfigError(
                f"record: ViZDoom has no scenario {plan.game!r}; it has {', '.join(scenarios())}"
            )
        self._skip = plan.frame_skip
        self.fps = TICS_PER_SECOND / plan.frame_skip
        self.licence = "Freedoom assets: BSD-3-Clause; ViZDoom and its scenarios: MIT"
        self.software: Mapping[str, str] = {"vizdoom": version("vizdoom")}
        # The engine keeps its settings file and a folder in its working directory.
        self._folder = Path(tempfile.mkdtemp(prefix="iwm-vizdoom-"))
        self._game = game = vizdoom.DoomGame()
        try:
            game.load_config(str(Path(vizdoom.scenarios_path) / f"{plan.game}.cfg"))
            game.set_doom_config_path(str(self._folder / "vizdoom.ini"))
            game.set_window_visible(False)
            game.set_sound_enabled(False)
            if branching:
                game.set_labels_buffer_enabled(True)
                game.add_game_args("+sv_cheats 1")  # commands are refused on some skills
            game.set_screen_format(vizdoom.ScreenFormat.RGB24)
            game.set_screen_resolution(_resolution(plan.width, plan.height))
            game.set_mode(vizdoom.Mode.PLAYER)
            game.set_episode_timeout(0)
            game.set_doom_skill(_SKILL.get(plan.game, game.get_doom_skill()))
            self.actions: tuple[str, ...] = _ACTIONS.get(plan.game) or (NOOP, *self._buttons())
            game.set_available_buttons(
                [vizdoom.Button.__members__[name.upper()] for name in self.actions if name != NOOP]
            )
            self.extra: Mapping[str, Any] = {
                "frame_skip": plan.frame_skip,
                "tics_per_second": TICS_PER_SECOND,
                "skill": game.get_doom_skill(),
            }
            self._start()
        except BaseException:
            self.close()
            raise
        self._branching = branching
        self._in_view: dict[int, tuple[str, float]] = {}
        self._shown: Frame | None = None
        self._changed = False
        self._places: list[tuple[float, float]] = []
        presses = len(self.actions) - 1
        self._held = [[0] * presses, *np.eye(presses, dtype=int).tolist()]

    def _buttons(self) -> list[str]:
        """The scenario's buttons; those that take an amount instead of a press are left out."""
        names = [button.name.lower() for button in self._game.get_available_buttons()]
        return [name for name in names if not name.endswith("_delta")]

    def _start(self) -> None:
        import vizdoom

        here = Path.cwd()
        os.chdir(self._folder)
        try:
            self._game.init()
        except (
            vizdoom.ViZDoomErrorException,
            vizdoom.ViZDoomUnexpectedExitException,
            vizdoom.FileDoesNotExistException,
        ) as error:
            raise DataError(f"ViZDoom does not start: {' '.join(str(error).split())}") from None
        finally:
            os.chdir(here)

    def reset(self, seed: int) -> Frame:
        """Begin an episode."""
        self._begin(seed)
        self._shown = self._frame()
        return self._shown

    def _begin(self, seed: int) -> None:
        self._game.set_seed(seed)
        self._game.new_episode()
        self._seed, self._changed = seed, False
        self._taken: list[int] = []

    def step(self, action: int) -> Outcome:
        """Hold one button for the plan's tics."""
        reward = self._game.make_action(self._held[action], self._skip)
        self._taken.append(action)
        if self._game.is_episode_finished():
            self._shown = None
            return Outcome(None, reward, done=True)
        self._shown = self._frame()
        return Outcome(self._shown, reward, done=False)

    def _frame(self) -> Frame:
        state = self._game.get_state()
        if self._branching:
            self._in_view = _in_view(state)
        # A copy: the engine draws the next frame into the same memory.
        return np.array(state.screen_buffer, np.uint8)

    def truth(self) -> None:
        """ViZDoom's state is not recorded."""
        return

    def save(self) -> _State:
        """A handle of the present state: the seed and every action since."""
        if self._changed:
            raise DataError("ViZDoom: a state with an object removed or moved cannot be saved")
        self._places.append(self.position()[:2])
        return _State(self._seed, tuple(self._taken))

    def restore(self, handle: _State) -> None:
        """Play to a saved state, from here if it lies ahead, else from the episode's start."""
        taken = tuple(self._taken)
        if self._changed or (handle.seed, handle.actions[: len(taken)]) != (self._seed, taken):
            self._begin(handle.seed)
        ahead = handle.actions[len(self._taken) :]
        for action in ahead[:-1]:
            self._game.set_action(self._held[action])
            self._game.advance_action(self._skip, False)
        if ahead:  # the last one in full: the engine brings frame, variables and reward up to date
            self._game.make_action(self._held[ahead[-1]], self._skip)
        self._taken = list(handle.actions)
        self._shown = None if self._game.is_episode_finished() else self._frame()

    def frame(self) -> Frame:
        """The frame last shown.

        Raises:
            DataError: the episode is over; ViZDoom shows nothing then.
        """
        if self._shown is None:
            raise DataError("ViZDoom: the episode is over, there is no frame")
        return self._shown

    def position(self) -> Position:
        """Map units, and degrees counter-clockwise from east."""
        import vizdoom

        kinds = vizdoom.GameVariable
        read = self._game.get_game_variable
        return read(kinds.POSITION_X), read(kinds.POSITION_Y), read(kinds.ANGLE)

    def remove_object(self, action: int) -> Mask | None:
        """Remove every object of the class that fills most of the frame; needs ``branching``.

        What counts of an object is the smaller of its shares of the frames before and after the
        action: one that only comes into view then is missed by nobody.
        """
        here, now = _State(self._seed, tuple(self._taken)), self._in_view
        if max(_shares(now, now).values(), default=0.0) < _SEEN:
            return None  # without looking ahead, which costs a replay
        after = {} if self.step(action).frame is None else self._in_view
        self.restore(here)
        share = _shares(now, after)
        most = max(sorted(share), key=lambda name: share[name], default=None)
        if most is None or share[most] < _SEEN:
            return None
        # Others of its class go as well, but may have left the view anyway.
        there = {number for number in now.keys() & after.keys() if now[number][0] == most}
        state: Any = self._game.get_state()
        values = [label.value for label in state.labels if label.object_id in there]
        mask: Mask = np.isin(state.labels_buffer, values)
        self._changed = True
        self._game.send_game_command(f"remove {most}")
        return mask

    def teleport(self, rng: np.random.Generator) -> bool:
        """Warp to a place where a state was saved, 256 map units or more away.

        Needs ``branching``.
        """
        x, y, _ = self.position()
        far = [(a, b) for a, b in self._places if np.hypot(a - x, b - y) >= _FAR]
        if not far or not self._branching:
            return False
        a, b = far[int(rng.integers(len(far)))]
        self._changed = True
        self._game.send_game_command(f"warp {a} {b}")
        return True

    def close(self) -> None:
        """End the engine and remove its working folder."""
        self._game.close()
        shutil.rmtree(self._folder, ignore_errors=True)

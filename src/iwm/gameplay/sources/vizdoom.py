"""ViZDoom: first-person 3D games with free assets, headless.

Scenarios and Freedoom's pictures come with the ``vizdoom`` package. An action is
one button held for ``frame_skip`` tics of 1/35 s, or none (``noop``).
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from iwm.errors import ConfigError, DataError
from iwm.gameplay.config import RecordPlan
from iwm.gameplay.sources import Frame, Outcome

TICS_PER_SECOND = 35

NOOP = "noop"

# Actions where they differ from "noop and every button of the scenario". my_way_home has five
# with five different outcomes, so that they can be told apart by what they lead to.
_ACTIONS: dict[str, tuple[str, ...]] = {
    "my_way_home": (NOOP, "move_forward", "move_backward", "turn_left", "turn_right"),
}
# On the scenario's own skill a random player is dead in a second or two.
_SKILL: dict[str, int] = {"deadly_corridor": 1}
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


class VizdoomSource:
    """One ViZDoom scenario.

    The game shows nothing once an episode is over, so the outcome of a last action
    has no frame. The scenario's time limit is off: the plan's counts.

    Raises:
        ConfigError: no such scenario or resolution.
        DataError: the engine does not start.
    """

    truth_schema: pa.Schema | None = None

    def __init__(self, plan: RecordPlan) -> None:
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
        self._game.set_seed(seed)
        self._game.new_episode()
        return self._frame()

    def step(self, action: int) -> Outcome:
        """Hold one button for the plan's tics."""
        reward = self._game.make_action(self._held[action], self._skip)
        if self._game.is_episode_finished():
            return Outcome(None, reward, done=True)
        return Outcome(self._frame(), reward, done=False)

    def _frame(self) -> Frame:
        # A copy: the engine draws the next frame into the same memory.
        return np.array(self._game.get_state().screen_buffer, np.uint8)

    def truth(self) -> None:
        """ViZDoom's state is not recorded."""
        return

    def close(self) -> None:
        """End the engine and remove its working folder."""
        self._game.close()
        shutil.rmtree(self._folder, ignore_errors=True)

"""ViZDoom's my_way_home for two players, each in a process of its own."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import TYPE_CHECKING

from iwm.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

GAME = "my_way_home"
BUTTONS = ("move_forward", "move_backward", "turn_left", "turn_right")
TICS = 8
"""Of one step; what doom-tiny was trained on."""
FLOOR = 64.0
"""Side of a square of floor, in map units; the player is 32 wide."""


def free_port() -> int:
    """A UDP port that was free a moment ago."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Engine:
    """One player's view of the common game.

    Args:
        name: of the player.
        port: of the host, UDP.
        seed: of the world.
        host: it hosts the game and waits for the other; otherwise it joins on loopback.

    Raises:
        DataError: the engine does not start, or the other player does not come.
    """

    def __init__(self, name: str, port: int, seed: int, *, host: bool) -> None:
        import vizdoom

        self._game = game = vizdoom.DoomGame()
        game.load_config(str(Path(vizdoom.scenarios_path) / f"{GAME}.cfg"))
        game.set_window_visible(False)
        game.set_sound_enabled(False)
        game.set_screen_format(vizdoom.ScreenFormat.RGB24)
        game.set_screen_resolution(vizdoom.ScreenResolution.RES_160X120)
        game.set_mode(vizdoom.Mode.PLAYER)
        game.set_episode_timeout(0)
        game.set_seed(seed)
        buttons = [vizdoom.Button.__members__[name.upper()] for name in BUTTONS]
        game.set_available_buttons(buttons)
        game.add_game_args(f"+name {name} -port {port}")
        game.add_game_args("-host 2" if host else "-join 127.0.0.1")
        try:
            game.init()
        except (vizdoom.ViZDoomErrorException, vizdoom.ViZDoomUnexpectedExitException) as error:
            raise DataError(f"ViZDoom: {' '.join(str(error).split())}") from None

    @property
    def over(self) -> bool:
        """Somebody has picked up the vest."""
        return bool(self._game.is_episode_finished())

    def frame(self) -> npt.NDArray[np.uint8]:
        """What the player sees, RGB ``[120, 160, 3]``."""
        import numpy as np

        return np.array(self._game.get_state().screen_buffer, np.uint8)

    def square(self) -> tuple[int, int]:
        """The square of floor that it stands on."""
        import vizdoom

        kinds = vizdoom.GameVariable
        read = self._game.get_game_variable
        return int(read(kinds.POSITION_X) // FLOOR), int(read(kinds.POSITION_Y) // FLOOR)

    def step(self, action: str) -> float:
        """Hold a button for a step's time; the reward."""
        return float(self._game.make_action([int(name == action) for name in BUTTONS], TICS))

    def close(self) -> None:
        """End this player's engine."""
        self._game.close()

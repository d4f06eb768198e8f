"""Gymnasium environments with discrete actions and pictures: ALE, MiniGrid and others."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import pyarrow as pa

from iwm.errors import ConfigError, DataError
from iwm.gameplay.config import RecordPlan
from iwm.gameplay.sources import Frame, Mask, Outcome, Position

_DEFAULT_FPS = 30.0
_ALE_FPS = 60.0  # the console's; gymnasium's metadata names the speed of the window
_LICENCES = {
    "ale_py": (
        "Emulator: GPL-2.0-only; the game's pictures remain its publisher's, for research use"
    ),
    "minigrid": "Apache-2.0",
    "gymnasium": "MIT",
}
_DISTRIBUTIONS = {"ale_py": "ale-py"}


@dataclass(frozen=True)
class _State:
    env: Any
    console: Any
    """ALE's own state, its random numbers included; ``None`` elsewhere."""
    frame: Frame


class GymnasiumSource:
    """One environment, drawn as RGB and scaled to the plan's size.

    Action names are the environment's own, in lower case: ``get_action_meanings()`` for
    ALE, the ``Actions`` enumeration for MiniGrid, ``action_0 ...`` where there are none.
    ALE's sticky actions are off: the recorded action is the one that acted.

    States are ALE's own (``cloneState``), elsewhere deep copies of the environment; removing
    objects and teleporting work in MiniGrid.

    Raises:
        ConfigError: no such environment, its actions are not discrete, or the plan names one that
            it does not have.
    """

    truth_schema: pa.Schema | None = None

    def __init__(self, plan: RecordPlan) -> None:
        self._size = (plan.width, plan.height)
        self._env = _make(plan)
        package = _package(self._env)
        # ALE skips frames itself, without drawing the ones between.
        self._console = self._env.unwrapped.ale if package == "ale_py" else None
        self._repeat = plan.frame_skip if self._console is None else 1
        rate = _ALE_FPS if package == "ale_py" else self._env.metadata.get("render_fps")
        self.fps = float(rate or _DEFAULT_FPS) / plan.frame_skip
        names = _action_names(self._env, plan.game)
        self.actions = _chosen(names, plan)
        first = int(getattr(self._env.action_space, "start", 0))
        self._number = [first + names.index(name) for name in self.actions]
        self.licence = _LICENCES.get(package, f"see the licence of {package}")
        distribution = _DISTRIBUTIONS.get(package, package)
        self.software: Mapping[str, str] = {
            name: version(name)
            for name in {"gymnasium", "pillow", distribution}
            if _installed(name)
        }
        self.extra: Mapping[str, Any] = {"frame_skip": plan.frame_skip}

    def reset(self, seed: int) -> Frame:
        """Begin an episode."""
        self._env.reset(seed=seed)
        self._shown = self._frame()
        return self._shown

    def step(self, action: int) -> Outcome:
        """Repeat the action for the plan's tics, or until the episode ends."""
        total = 0.0
        for _ in range(self._repeat):
            _, reward, done, truncated, _ = self._env.step(self._number[action])
            total += float(reward)
            if done or truncated:
                break
        self._shown = self._frame()
        return Outcome(self._shown, total, bool(done), bool(truncated))

    def _frame(self) -> Frame:
        from PIL import Image

        pixels = np.ascontiguousarray(self._env.render(), dtype=np.uint8)
        if (pixels.shape[1], pixels.shape[0]) == self._size:
            return pixels
        scaled = Image.fromarray(pixels).resize(self._size, Image.Resampling.BOX)
        return np.asarray(scaled, np.uint8)

    def truth(self) -> None:
        """The environment's state is not recorded."""
        return

    def save(self) -> _State:
        """A handle of the present state.

        Raises:
            DataError: the environment cannot be copied.
        """
        if self._console is not None:
            return _State(None, self._console.cloneState(include_rng=True), self._shown)
        return _State(self._copy(self._env), None, self._shown)

    def restore(self, handle: _State) -> None:
        """Return to a saved state."""
        if self._console is not None:
            self._console.restoreState(handle.console)
        else:
            self._env = self._copy(handle.env)
        # Not drawn anew: the console draws its screen only as it runs.
        self._shown = handle.frame

    def _copy(self, env: Any) -> Any:
        try:
            return copy.deepcopy(env)
        except (TypeError, NotImplementedError) as error:
            reason = " ".join(str(error).split())
            raise DataError(f"{env}: its state cannot be saved: {reason}") from None

    def frame(self) -> Frame:
        """The frame last shown."""
        return self._shown

    def position(self) -> Position | None:
        """MiniGrid: cell, and degrees clockwise from east; ``None`` elsewhere."""
        world = self._env.unwrapped
        if not hasattr(world, "agent_dir"):
            return None
        x, y = world.agent_pos
        return float(x), float(y), 90.0 * int(world.agent_dir)

    def remove_object(self, action: int) -> Mask | None:
        """MiniGrid: remove the first object, by rows, that is no wall."""
        del action
        world = self._env.unwrapped
        for x, y in _cells(world):
            thing = world.grid.get(x, y)
            if thing is not None and thing.type not in ("wall", "floor"):
                world.grid.set(x, y, None)
                return self._cell(x, y)
        return None

    def _cell(self, x: int, y: int) -> Mask:
        """A cell's pixels: the frame is the whole grid."""
        height, width = self._shown.shape[:2]
        columns, rows = self._env.unwrapped.width, self._env.unwrapped.height
        mask = np.zeros((height, width), np.bool_)
        across = slice(x * width // columns, (x + 1) * width // columns)
        mask[y * height // rows : (y + 1) * height // rows, across] = True
        return mask

    def teleport(self, rng: np.random.Generator) -> bool:
        """MiniGrid: to a random empty cell at least a third of the grid's side away."""
        world = self._env.unwrapped
        far = [
            (x, y)
            for x, y in _cells(world)
            if world.grid.get(x, y) is None
            and 3 * max(abs(x - world.agent_pos[0]), abs(y - world.agent_pos[1]))
            >= min(world.width, world.height)
        ]
        if not far:
            return False
        world.agent_pos = far[int(rng.integers(len(far)))]
        return True

    def close(self) -> None:
        """Close the environment."""
        self._env.close()


def _make(plan: RecordPlan) -> Any:
    import gymnasium

    options: dict[str, Any] = {"render_mode": "rgb_array"}
    if plan.game.startswith("ALE/"):
        import ale_py

        ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
        gymnasium.register_envs(ale_py)
        options |= {"frameskip": plan.frame_skip, "repeat_action_probability": 0.0}
    elif plan.game.startswith(("MiniGrid-", "BabyAI-")):
        import minigrid

        gymnasium.register_envs(minigrid)
    try:
        env = gymnasium.make(plan.game, **options)
    except (gymnasium.error.Error, TypeError, ImportError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"record: gymnasium cannot make {plan.game!r}: {reason}") from None
    if not isinstance(env.action_space, gymnasium.spaces.Discrete):
        env.close()
        raise ConfigError(f"record: {plan.game}: actions are {env.action_space}, not discrete")
    return env


def _cells(world: Any) -> list[tuple[int, int]]:
    """The cells of a MiniGrid, by rows; none for another environment."""
    if not hasattr(world, "grid") or not hasattr(world, "agent_dir"):
        return []
    return [(x, y) for y in range(world.height) for x in range(world.width)]


def _installed(distribution: str) -> bool:
    """False for an environment of the user's own, in a module that is no package."""
    try:
        version(distribution)
    except PackageNotFoundError:
        return False
    return True


def _package(env: Any) -> str:
    return str(type(env.unwrapped).__module__.split(".")[0])


def _action_names(env: Any, game: str) -> tuple[str, ...]:
    count = int(env.action_space.n)
    game_env = env.unwrapped
    if hasattr(game_env, "get_action_meanings"):
        names = [str(name).lower() for name in game_env.get_action_meanings()]
    elif hasattr(game_env, "actions"):
        names = [str(action.name).lower() for action in game_env.actions]
    else:
        names = [f"action_{number}" for number in range(count)]
    if len(names) != count or len(set(names)) != count:
        raise ConfigError(f"record: {game}: {count} actions but names {', '.join(names)}")
    return tuple(names)


def _chosen(names: tuple[str, ...], plan: RecordPlan) -> tuple[str, ...]:
    if plan.actions is None:
        return names
    wrong = [name for name in plan.actions if name not in names]
    if wrong:
        raise ConfigError(
            f"record: {plan.name}.actions: {plan.game} has no action {wrong[0]!r}; "
            f"it has {', '.join(names)}"
        )
    if len(set(plan.actions)) != len(plan.actions):
        raise ConfigError(f"record: {plan.name}.actions: one is named twice")
    return plan.actions

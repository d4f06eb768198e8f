"""What stands behind /imagine and /intention: a world model of states, and a board."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iwm.errors import ModelError
from iwm.files import read_json
from iwm.serving.wire import RequestError

if TYPE_CHECKING:
    from iwm.agents.intention import IntentionCompressor
    from iwm.models.embodied import WorldModel

EMBODIED = "embodied"
MAX_ROOMS, MAX_AGENTS = 256, 64
FORGET_S = 60.0
"""A room that nobody posts to for so long is forgotten."""


class Imaginer:
    """A world model of vector states and the codec of its plans.

    Args:
        model: in eval mode.
        compressor: of its trajectories.
        card: of the model.
        device: ``auto``, ``cpu``, ``cuda``, ...

    Raises:
        ConfigError: no such device.
    """

    def __init__(
        self,
        model: WorldModel,
        compressor: IntentionCompressor,
        card: dict[str, Any],
        device: str = "auto",
    ) -> None:
        from iwm.agents.imagination import ImaginedTrajectoryGenerator
        from iwm.serving.device import choose_device

        self.model = model.to(choose_device(device)).eval()
        self.compressor, self.card = compressor, card
        # One thread: the service's other calls want the processors, too.
        self.generator = ImaginedTrajectoryGenerator(self.model, horizon=model.horizon, workers=1)
        self.generator.generate(self.model.state_mean[None], horizon=2)  # warm

    @property
    def name(self) -> str:
        """Name and version."""
        return "/".join(str(self.card.get(key) or "-") for key in ("model", "version"))

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """Names of the actions; empty where they are numbers."""
        return self.model.config.vocabulary


def load_imaginer(folder: Path, device: str = "auto") -> Imaginer:
    """Load a world model of states with its codec.

    Raises:
        ModelError: no such folder, another kind of model, or one that cannot be loaded.
        ConfigError: no such device.
    """
    from iwm.agents.codec import TrajectoryCodec
    from iwm.agents.intention import IntentionCompressor
    from iwm.models.registry import load_model
    from iwm.models.saving import read_config

    if not folder.is_dir():
        raise ModelError(f"{folder}: no such model folder")
    read_config(folder, EMBODIED)
    model = load_model(folder)
    codec = TrajectoryCodec.load(folder)
    if codec.state_dim != model.state_dim:
        raise ModelError(
            f"{folder}: its codec is of states of {codec.state_dim} numbers, its model of "
            f"{model.state_dim}"
        )
    path = folder / "card.json"
    card = dict(read_json(path)) if path.exists() else {}
    return Imaginer(model, IntentionCompressor(codec), card, device)


def facts(imaginer: Imaginer | None) -> dict[str, Any] | None:
    """What ``GET /model`` says of the world model of states; ``None`` without one."""
    if imaginer is None:
        return None
    card, config = imaginer.card, imaginer.model.config
    return {
        "name": card.get("model"),
        "version": card.get("version"),
        "alias": card.get("alias"),
        "weights_sha256": card.get("weights_sha256"),
        "state_dim": config.state_dim,
        "state_names": list(config.state_names) or None,
        "action_dim": config.action_dim,
        "vocabulary": list(config.vocabulary) or None,
        "horizon": config.horizon,
        "plan_steps": imaginer.compressor.codec.horizon,
    }


@dataclass(frozen=True)
class Posted:
    """An intention on the board; ``ours``: compressed here, so that its plan can be read."""

    round: int
    text: str
    ours: bool


@dataclass
class _Room:
    agents: dict[str, Posted] = field(default_factory=dict)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    used: float = 0.0


class Board:
    """The newest intention of every agent, by room. Belongs to one event loop, and is bounded:
    the room that was quiet for longest makes place for a new one.
    """

    def __init__(self) -> None:
        self._rooms: OrderedDict[str, _Room] = OrderedDict()

    def __len__(self) -> int:
        return len(self._rooms)

    def post(self, room: str, agent: str, posted: Posted) -> None:
        """Take the place of what the agent posted before.

        Raises:
            RequestError: 422, a room of too many agents.
        """
        held = self._room(room)
        if agent not in held.agents and len(held.agents) >= MAX_AGENTS:
            raise RequestError(422, f"room: expected at most {MAX_AGENTS} agents in it")
        held.agents[agent] = posted
        held.changed.set()
        held.changed = asyncio.Event()

    async def others(
        self, room: str, agent: str, number: int, awaited: list[str], wait_s: float
    ) -> dict[str, Posted]:
        """What the others mean to do in this round, or meant in another one.

        Waits until all of ``awaited`` have posted for this round, ``wait_s`` at most.
        """
        deadline = time.monotonic() + wait_s
        while True:
            held = self._room(room)
            here = {name: held.agents.get(name) for name in awaited if name != agent}
            left = deadline - time.monotonic()
            if left <= 0 or all(one and one.round == number for one in here.values()):
                return {name: one for name, one in held.agents.items() if name != agent}
            try:
                async with asyncio.timeout(left):
                    await held.changed.wait()
            except TimeoutError:
                continue

    def _room(self, name: str) -> _Room:
        now = time.monotonic()
        while self._rooms:
            oldest = next(iter(self._rooms.values()))
            if len(self._rooms) <= MAX_ROOMS and now - oldest.used <= FORGET_S:
                break
            self._rooms.popitem(last=False)
        held = self._rooms.setdefault(name, _Room())
        held.used = now
        self._rooms.move_to_end(name)
        return held

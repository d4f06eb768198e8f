"""Two agents in one ViZDoom game tell each other where they mean to go.

    iwm serve --model doom-tiny          # in another terminal
    python examples/two_agents.py

The game is my_way_home, with two players: one process hosts it, the other joins over loopback.
Each agent sees its own view alone. Every few steps it encodes its frame (/encode), imagines what it
would see along a handful of plans (/rollout) and takes the plan whose views are the newest to it.
What it plans goes to the other through the service (/intention) as text of at most 49 bytes, and
what the other tells counts as seen: it need not be looked at twice. The same team also plays
without telling anything. The game's own coordinates only judge: the score is the floor that the two
have walked on together.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from doom_for_two import BUTTONS, GAME, Engine, free_port

from iwm.errors import DataError, ModelError, ServiceError, one_line_errors

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    import numpy as np
    import numpy.typing as npt

    from iwm.agents.codec import TrajectoryCodec
    from iwm.client import IntentionResult, RolloutResult, SyncIWMClient

    Floats = npt.NDArray[np.float32]

AGENTS = ("one", "two")
HORIZON = 6
"""Steps of a plan."""
PLANS: dict[str, tuple[str, ...]] = {
    "ahead": ("move_forward",) * HORIZON,
    "back": ("move_backward",) * HORIZON,
    **{
        f"{side}{turns}": (f"turn_{side}",) * turns + ("move_forward",) * (HORIZON - turns)
        for side in ("left", "right")
        for turns in (1, 2, 4)
    },
}
"""What is imagined, by the name that goes into a message."""
ROOMS = 4
"""A room keeps an agent's newest message alone, and the engine lets a player run ahead by a round:
rounds take turns at so many rooms."""
START_S = 60.0
"""The engine's own patience with players that do not come."""


@dataclass
class Told:
    """What one agent did in one game."""

    floor: set[tuple[int, int]] = field(default_factory=set)
    """Squares of floor that it stood on."""
    found: bool = False
    """It has picked up the vest."""
    texts: list[str] = field(default_factory=list)
    """Its messages."""
    read: int = 0
    """Messages of the other that it could use."""
    dropped: dict[str, int] = field(default_factory=dict)
    """Those that it could not use, by the reason."""
    missed: int = 0
    """Rounds in which the other's message did not come in time."""
    changed: int = 0
    """Rounds in which it chose otherwise than it would have alone."""
    round_ms: list[float] = field(default_factory=list)
    """From the frame to the action."""


class Explorer:
    """Goes where it expects to see what is new.

    Args:
        client: of the service.
        codec: what intentions are coded with, the same for both.
        name: its own.
        room: where intentions are told; ``None``: nothing is told.
    """

    def __init__(
        self, client: SyncIWMClient, codec: TrajectoryCodec, name: str, room: str | None
    ) -> None:
        from iwm.agents.exchange import Inbox
        from iwm.agents.intention import IntentionCompressor

        self._client, self._codec, self._name, self._room = client, codec, name, room
        self._compressor = IntentionCompressor(codec)
        self._inbox = Inbox([other for other in AGENTS if other != name], self._compressor)
        self._seen: list[Floats] = []
        self._others: list[Floats] = []
        self.told = Told()

    def decide(self, frame: npt.NDArray[np.uint8], number: int) -> tuple[str, ...]:
        """Look, imagine, choose, tell, listen.

        Args:
            frame: its view.
            number: of the round.

        Returns:
            The plan's actions.
        """
        began = time.perf_counter()
        latent = self._client.encode_image(frame).z_cls
        self._seen.append(self._codec.project(latent))
        futures = {
            name: self._client.rollout(latent, actions=list(plan)) for name, plan in PLANS.items()
        }
        name = self._newest(futures, self._seen + self._others)
        self.told.changed += name != self._newest(futures, self._seen)
        if self._room is not None:
            self._exchange(number, name, futures[name])
        self.told.round_ms.append(1000 * (time.perf_counter() - began))
        return PLANS[name]

    def _newest(self, futures: dict[str, RolloutResult], memory: list[Floats]) -> str:
        """The plan along which views are farthest from all that is remembered."""
        import numpy as np

        known = np.stack(memory)

        def novelty(name: str) -> float:
            views = self._codec.project(futures[name].z_cls_seq)
            apart = np.linalg.norm(views[:, None] - known[None], axis=-1)
            return float(apart.min(1).mean())

        return max(futures, key=novelty)

    def _exchange(self, number: int, name: str, future: RolloutResult) -> None:
        """Tell the plan; hear the other's and count it as seen."""
        import numpy as np

        from iwm.agents.exchange import Message

        sure = float(np.nan_to_num(future.mrr_seq.mean(), nan=0.5))
        text = self._compressor.compress(future.z_cls_seq, name, min(1.0, max(0.0, sure)))
        self.told.texts.append(text)
        # The engine may hold the other until this one moves, so nobody waits for a message: what
        # was told in the round before is heard, and this round's is left for the next.
        if number:
            heard = self._post(number - 1, self.told.texts[-2])
            self._inbox.begin(number - 1)
            self._inbox.take([Message(one.agent, number - 1, one.text) for one in heard.others])
            self.told.missed += bool(heard.missing)
        self._post(number, text)
        if not number:
            return
        for intention in self._inbox.read.values():
            if intention.features is not None:
                self._others.extend(intention.features)
                self.told.read += 1
        self.told.dropped = {str(why): n for why, n in self._inbox.dropped.items()}

    def _post(self, number: int, text: str) -> IntentionResult:
        """Leave a round's message, and see the other's if it is there."""
        room = f"{self._room} {number % ROOMS}"
        return self._client.intention(self._name, number, room=room, text=text, agents=AGENTS)


@dataclass(frozen=True)
class Match:
    """What both players know of their game."""

    url: str
    port: int
    seed: int
    steps: int
    act: int
    folder: Path
    room: str | None


def play(place: int, match: Match, parent: Connection) -> None:
    """One player's process: the whole game, then its :class:`Told`, or an error, to the parent."""
    from iwm.agents.codec import TrajectoryCodec
    from iwm.client import SyncIWMClient

    try:
        # The engine writes to the terminal, and its settings into the working folder.
        with (match.folder / f"{AGENTS[place]}.log").open("ab") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        os.chdir(tempfile.mkdtemp(dir=match.folder))
        with SyncIWMClient(match.url) as client:
            codec = TrajectoryCodec.load(match.folder)
            explorer = Explorer(client, codec, AGENTS[place], match.room)
            engine = Engine(AGENTS[place], match.port, match.seed, host=place == 0)
            try:
                plan: tuple[str, ...] = ()
                for step in range(match.steps):
                    if engine.over:
                        break
                    explorer.told.floor.add(engine.square())
                    if step % match.act == 0:
                        plan = explorer.decide(engine.frame(), step // match.act)
                    explorer.told.found |= engine.step(plan[step % match.act]) > 0.5
            finally:
                engine.close()
        parent.send(explorer.told)
    except (DataError, ModelError, ServiceError, OSError) as error:
        parent.send(f"player {AGENTS[place]}: {error}")


def game(match: Match) -> tuple[Told, Told]:
    """Both players' processes, from start to end.

    Raises:
        ServiceError: a player failed or came to no end.
    """
    from multiprocessing.connection import wait

    context = multiprocessing.get_context("spawn")
    pipes, players = [], []
    for place in range(2):
        mine, theirs = context.Pipe()
        arguments = place, match, theirs
        players.append(context.Process(target=play, args=arguments, daemon=True))
        players[-1].start()
        theirs.close()  # so that the end of the process ends the pipe
        pipes.append(mine)
    told: dict[int, Told] = {}
    try:
        while len(told) < 2:
            waiting = [pipe for place, pipe in enumerate(pipes) if place not in told]
            ready = wait(waiting, 2 * START_S + 5.0 * match.steps)
            if not ready:
                raise ServiceError("two_agents: the players came to no end")
            for place, pipe in enumerate(pipes):
                if pipe in ready:
                    told[place] = answer_of(pipe)
        for player in players:
            player.join(10)
    finally:
        for player in players:
            if player.is_alive():
                player.kill()
    return told[0], told[1]


def answer_of(pipe: Connection) -> Told:
    """What a player has sent.

    Raises:
        ServiceError: an error, or nothing before its end.
    """
    try:
        answer = pipe.recv()
    except EOFError:
        raise ServiceError("two_agents: a player's process ended early") from None
    if isinstance(answer, str):
        raise ServiceError(f"two_agents: {answer}")
    assert isinstance(answer, Told)
    return answer


def shared_codec(url: str, steps: int, folder: Path) -> None:
    """Fit what intentions are coded with to imagined futures along random play, and save it.

    Raises:
        ServiceError: the service is not there, or serves a model of another game.
    """
    import numpy as np

    from iwm.agents.codec import TrajectoryCodec
    from iwm.client import SyncIWMClient
    from iwm.gameplay.config import RecordPlan
    from iwm.gameplay.sources import open_source

    rng = np.random.default_rng(0)
    futures = []
    with SyncIWMClient(url) as client:
        health = client.health()
        if health["status"] != "ok":
            raise ServiceError(str(health.get("error", f"{url}: {health['status']}")))
        card = client.model()
        missing = [name for name in BUTTONS if name not in card.vocabulary]
        if missing:
            raise ServiceError(
                f"{url} serves {card.name or card.model_variant}, which does not know the action "
                f"{missing[0]!r}; try `iwm serve --model doom-tiny`"
            )
        source = open_source(RecordPlan(name=GAME, source="vizdoom", game=GAME, frames=2))
        try:
            frame = source.reset(0)
            for _ in range(steps):
                latent = client.encode_image(frame).z_cls
                plan = list(PLANS)[int(rng.integers(len(PLANS)))]
                rolled = client.rollout(latent, actions=list(PLANS[plan]))
                futures.append(rolled.z_cls_seq)
                outcome = source.step(int(rng.integers(len(source.actions))))
                frame = source.reset(len(futures)) if outcome.frame is None else outcome.frame
        finally:
            source.close()
    TrajectoryCodec.fit(np.stack(futures)).save(folder)


def figures_of(games: dict[str, list[tuple[Told, Told]]]) -> dict[str, Any]:
    """Scores, messages, latencies."""
    import numpy as np

    from iwm.evaluation.statistics import bootstrap_mean

    found: dict[str, Any] = {}
    floor: dict[str, Any] = {}
    for arm, played in games.items():
        label = np.arange(len(played))
        floor[arm] = np.array([len(one.floor | two.floor) for one, two in played], float)
        every = [told for pair in played for told in pair]
        took = [ms for told in every for ms in told.round_ms]
        found[arm] = {
            "floor": bootstrap_mean(floor[arm], label),
            "walked_twice": float(np.mean([len(one.floor & two.floor) for one, two in played])),
            "found": sum(one.found or two.found for one, two in played),
            "rounds": len(took),
            "round_ms": {f"p{q}": float(np.percentile(took, q)) for q in (50, 95)},
        }
        texts = [text for told in every for text in told.texts]
        if texts:
            sizes = [len(text.encode()) for text in texts]
            found[arm] |= {
                "messages": len(texts),
                "bytes_mean": float(np.mean(sizes)),
                "bytes_max": max(sizes),
                "read": sum(told.read for told in every),
                "dropped": sum(sum(told.dropped.values()) for told in every),
                "missed": sum(told.missed for told in every),
                "changed": sum(told.changed for told in every) / len(took),
                "examples": texts[:4],
            }
    apart = floor["intentions"] - floor["silent"]
    found["intentions_minus_silent"] = bootstrap_mean(apart, np.arange(len(apart)))
    return found


def report(found: dict[str, Any]) -> None:
    """Print the figures."""
    told = found["intentions"]
    print("\nmessages: " + "  ".join(told["examples"]))
    print(
        f"{told['messages']} of {told['bytes_mean']:.0f} bytes, at most {told['bytes_max']} (as "
        f"many tokens, or fewer); {told['read']} read, {told['dropped']} dropped, "
        f"{told['missed']} late; in {told['changed']:.0%} of rounds they changed the choice"
    )
    for arm in ("intentions", "silent"):
        one = found[arm]
        print(
            f"{arm:11} {one['floor']['mean']:5.1f} [{one['floor']['low']:.1f}, "
            f"{one['floor']['high']:.1f}] squares of floor, {one['walked_twice']:.1f} by both; "
            f"vest found in {one['found']} of {one['floor']['n']} games; a round p50 "
            f"{one['round_ms']['p50']:.0f} ms, p95 {one['round_ms']['p95']:.0f} ms"
        )
    apart = found["intentions_minus_silent"]
    print(f"apart: {apart['mean']:+.1f} [{apart['low']:+.1f}, {apart['high']:+.1f}]")


def main(
    games: Annotated[int, typer.Option(min=1, max=200, help="Games of each team.")] = 10,
    steps: Annotated[int, typer.Option(min=HORIZON, max=2000, help="Steps of a game.")] = 90,
    act: Annotated[int, typer.Option(min=1, max=HORIZON, help="Actions of a plan.")] = 3,
    seed: Annotated[int, typer.Option(min=0, help="Of the worlds.")] = 0,
    url: Annotated[str, typer.Option(help="Where the service is.")] = "http://127.0.0.1:8001",
    output: Annotated[
        Path | None, typer.Option("--json", help="Write the figures to this file, too.")
    ] = None,
) -> None:
    """Let two agents explore one game together, with and without telling their intentions."""
    with one_line_errors(), tempfile.TemporaryDirectory(prefix="iwm-two-") as scratch:
        folder = Path(scratch)
        shared_codec(url, 60, folder)
        played: dict[str, list[tuple[Told, Told]]] = {"intentions": [], "silent": []}
        for number in range(games):
            for arm, done in played.items():
                room = f"{GAME} {os.getpid()} {number}" if arm == "intentions" else None
                match = Match(url, free_port(), seed + number, steps, act, folder, room)
                pair = game(match)
                done.append(pair)
                together = len(pair[0].floor | pair[1].floor)
                print(f"game {number + 1:3} {arm:11} {together:4} squares of floor", flush=True)
        found = {"game": GAME, "games": games, "steps": steps, "act": act, **figures_of(played)}
        report(found)
        if output is not None:
            output.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)

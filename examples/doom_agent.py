"""An agent that plays ViZDoom's my_way_home through the inference service.

    iwm serve --model doom-tiny          # in another terminal
    python examples/doom_agent.py

A task: somebody has walked through the rooms for a few steps, and all that the agent is given is
the last frame that was seen. Put back to where that walk began, it has to find its way there. It
sees (/encode), notices what it did not expect (/surprise, /predict), plans (/plan towards the
frame's latent) and acts; the game's own coordinates only judge. The same tasks are played at
random, as the recordings are: an action held for one to six steps.
"""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import typer

from iwm.errors import ServiceError, one_line_errors

if TYPE_CHECKING:
    from iwm.agents import ArbiterConfig
    from iwm.client import IWMClient
    from iwm.evaluation.control_config import ControlConfig
    from iwm.evaluation.goals import Task
    from iwm.gameplay.sources import Branching, Frame

GAME = "my_way_home"


@dataclass(frozen=True)
class Attempt:
    """How one task went: steps taken of those allowed, and the greatest surprise."""

    reached: bool
    steps: int
    budget: int
    surprise: float = 0.0


@dataclass
class Latencies:
    """Milliseconds of every step."""

    see: list[float] = field(default_factory=list)
    """Encoding the frame, predicting it, measuring surprise."""
    decide: list[float] = field(default_factory=list)
    """Planning."""
    step: list[float] = field(default_factory=list)
    """Both, from the frame to the action."""

    def percentiles(self) -> dict[str, dict[str, float]]:
        """p50, p95 and p99 of each."""
        import numpy as np

        return {
            name: {f"p{q}": float(np.percentile(values, q)) for q in (50, 95, 99)}
            for name, values in vars(self).items()
            if values
        }


class Player(Protocol):
    """Who chooses actions."""

    surprise: float

    async def begin(self, goal: Frame, seed: int) -> None:
        """A new task: the frame to get to."""
        ...

    async def act(self, frame: Frame) -> str:
        """The next action's name."""
        ...


class RandomPlayer:
    """Holds a random action for a random number of steps."""

    surprise = 0.0

    def __init__(self, actions: tuple[str, ...], hold_min: int, hold_max: int) -> None:
        from iwm.gameplay.policies import RandomHold

        self._actions, self._habit = actions, RandomHold(len(actions), hold_min, hold_max)

    async def begin(self, goal: Frame, seed: int) -> None:  # noqa: ARG002
        """A new task."""
        self._habit.reset(seed)

    async def act(self, frame: Frame) -> str:
        """The action held, or a new one."""
        return self._actions[self._habit.choose(frame)]


class WorldModelAgent:
    """Perception, arbiter and coherence around the service."""

    def __init__(self, client: IWMClient, config: ArbiterConfig) -> None:
        from iwm.agents import ActionArbiter, IWMPerceptionModule

        self._eyes = IWMPerceptionModule(client=client, abstraction_every=0)
        self._arbiter = ActionArbiter(client, config)
        self.latencies = Latencies()
        self.reasons: dict[str, int] = {}

    async def begin(self, goal: Frame, seed: int) -> None:  # noqa: ARG002
        """Look at the goal; the agent itself has not moved."""
        from iwm.agents import BeingState, TemporalCoherence

        self._goal = (await self._eyes.client.encode_image(goal)).z_cls
        self._state, self._coherence = BeingState(), TemporalCoherence()
        self._arbiter.reset()
        self.surprise = 0.0

    async def act(self, frame: Frame) -> str:
        """See, notice, plan."""
        state = self._state
        started = time.perf_counter()
        await self._eyes.process_frame(frame, state, state.last_action)
        seen = time.perf_counter()
        self._coherence.update(state)
        self.surprise = max(self.surprise, state.vision_prediction_surprise)
        decision = await self._arbiter.request_action(state, self._goal)
        done = time.perf_counter()
        state.last_action = decision.action
        self.latencies.see.append(1000 * (seen - started))
        self.latencies.decide.append(1000 * (done - seen))
        self.latencies.step.append(1000 * (done - started))
        self.reasons[decision.reason] = self.reasons.get(decision.reason, 0) + 1
        return decision.action

    def summary(self) -> dict[str, Any]:
        """Latencies, why actions were taken, and what perception counted."""
        return {
            "latency_ms": self.latencies.percentiles(),
            "reasons": self.reasons,
            "perception": self._eyes.get_stats(),
        }


async def attempt(
    player: Player, source: Branching, task: Task, config: ControlConfig, number: int
) -> Attempt:
    """Let a player try a task."""
    from iwm.evaluation.goals import reached, where

    frame: Frame | None = source.reset(task.seed)
    for action in task.prefix:
        frame = source.step(action).frame
    await player.begin(task.goal, number)
    steps, success = 0, False
    while frame is not None and steps < task.budget and not success:
        action = source.actions.index(await player.act(frame))
        outcome = source.step(action)
        frame, steps = outcome.frame, steps + 1
        success = frame is not None and reached(where(source), task.target, config)
    return Attempt(success, steps, task.budget, player.surprise)


def show(name: str, number: int, made: Attempt) -> None:
    """One line for one attempt."""
    what = "reached" if made.reached else "missed "
    surprise = f", surprise up to {made.surprise:.2f}" if made.surprise else ""
    print(
        f"{name:7} task {number + 1:3}: {what} in {made.steps:2} of {made.budget} steps{surprise}"
    )


async def play(
    episodes: int, seed: int, random_only: bool, url: str, search: dict[str, int]
) -> dict[str, Any]:
    """Play all tasks and gather the figures; ``search`` holds settings of the arbiter.

    Raises:
        ServiceError: the service is not there, or serves a model of another game.
    """
    import numpy as np

    from iwm.agents import ArbiterConfig
    from iwm.client import IWMClient
    from iwm.evaluation.control_config import ControlConfig
    from iwm.evaluation.goals import played_tasks
    from iwm.evaluation.statistics import bootstrap_mean
    from iwm.gameplay.config import RecordPlan
    from iwm.gameplay.policies import RandomHold
    from iwm.gameplay.sources import open_source
    from iwm.settings import parse

    plan = RecordPlan(name=GAME, source="vizdoom", game=GAME, frames=2)
    # Reached: within a step's walk, facing about the same way. Goals begin farther away.
    config = ControlConfig(
        plan=GAME, goals="played", tasks=episodes, goal_steps=(4, 8), away=96, distance=64, angle=30
    )
    made: dict[str, list[Attempt]] = {}
    figures: dict[str, Any] = {"game": GAME, "episodes": episodes, "seed": seed, **search}
    async with IWMClient(url) as client:
        with closing(open_source(plan)) as source:
            names = source.actions
            players: dict[str, Player] = {}
            if not random_only:
                settings = {"actions": names, "wait_action": "noop", **search}
                chooses = parse(ArbiterConfig, settings, "arbiter")
                agent = WorldModelAgent(client, chooses)
                await check(client, names)
                players["agent"] = agent
            players["random"] = RandomPlayer(names, plan.hold_min, plan.hold_max)
            habit = RandomHold(len(names), plan.hold_min, plan.hold_max)
            for number, task in enumerate(played_tasks(source, habit, config, seed)):
                for name, player in players.items():
                    one = await attempt(player, source, task, config, number)
                    made.setdefault(name, []).append(one)
                    show(name, number, one)
    label = np.arange(episodes)
    won = {name: np.array([one.reached for one in all_], float) for name, all_ in made.items()}
    for name, all_ in made.items():
        figures[name] = {
            "success": bootstrap_mean(won[name], label),
            "steps": float(np.mean([one.steps for one in all_])),
        }
    if not random_only:
        figures["agent_minus_random"] = bootstrap_mean(won["agent"] - won["random"], label)
        figures |= agent.summary()
    return figures


async def check(client: IWMClient, names: tuple[str, ...]) -> None:
    """Whether the service is there and its model knows the game's actions."""
    health = await client.health()
    if health["status"] != "ok":
        raise ServiceError(str(health.get("error", f"{client.base_url}: {health['status']}")))
    card = await client.model()
    missing = [name for name in names if name not in card.vocabulary]
    if missing:
        raise ServiceError(
            f"{client.base_url} serves {card.name or card.model_variant}, which does not know the "
            f"action {missing[0]!r}; try `iwm serve --model doom-tiny`"
        )


def report(figures: dict[str, Any]) -> None:
    """Print scores and latencies."""
    print()
    for name in ("agent", "random"):
        if name in figures:
            score = figures[name]["success"]
            print(
                f"{name:7} reached {round(score['mean'] * score['n'])} of {score['n']} goals "
                f"({score['mean']:.2f} [{score['low']:.2f}, {score['high']:.2f}]), "
                f"{figures[name]['steps']:.1f} steps a task"
            )
    if "agent_minus_random" in figures:
        apart = figures["agent_minus_random"]
        print(f"agent - random: {apart['mean']:+.2f} [{apart['low']:+.2f}, {apart['high']:+.2f}]")
    for name, percentiles in figures.get("latency_ms", {}).items():
        print(f"{name:7} " + ", ".join(f"{q} {ms:.1f} ms" for q, ms in percentiles.items()))
    if "perception" in figures:
        seen = figures["perception"]
        print(
            f"{seen['frames_processed']} frames seen, {seen['high_surprises']} surprising; "
            f"surprise {seen['mean_surprise']:.2f} on average, {seen['max_surprise']:.2f} at most"
        )


def main(
    episodes: Annotated[int, typer.Option(min=1, max=1000, help="Tasks to play.")] = 20,
    seed: Annotated[int, typer.Option(min=0, help="Which tasks.")] = 0,
    random: Annotated[bool, typer.Option("--random", help="Random play alone.")] = False,
    url: Annotated[str, typer.Option(help="Where the service is.")] = "http://127.0.0.1:8001",
    act: Annotated[int, typer.Option(min=1, max=8, help="Actions taken from a plan.")] = 2,
    candidates: Annotated[int, typer.Option(min=1, help="Sequences of one iteration.")] = 128,
    iterations: Annotated[int, typer.Option(min=1, help="Iterations of a search.")] = 5,
    output: Annotated[
        Path | None, typer.Option("--json", help="Write the figures to this file, too.")
    ] = None,
) -> None:
    """Play ViZDoom's my_way_home with a world model, and at random beside it."""
    with one_line_errors():
        search = {"act": act, "candidates": candidates, "iterations": iterations}
        figures = asyncio.run(play(episodes, seed, random, url, search))
        report(figures)
        if output is not None:
            output.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)

"""Goal-reaching tasks in games that can branch, and when a goal counts as reached."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from iwm.errors import DataError
from iwm.evaluation.control_config import ControlConfig
from iwm.gameplay.play import derive_seed
from iwm.gameplay.policies import Policy
from iwm.gameplay.sources import Branching, Frame, Position
from iwm.progress import Progress

_MAX_STATES = 20_000
_MAX_TRIES = 100


@dataclass(frozen=True)
class Task:
    """From a start in a fresh episode to what a picture shows."""

    seed: int
    """Of the episode."""
    prefix: tuple[int, ...]
    """Game actions from the episode's beginning to the start."""
    goal: Frame
    target: Position
    shortest: int
    """Steps: the shortest path where it is known, else those that the policy took."""
    budget: int
    """Steps allowed."""


def reached(position: Position, target: Position, config: ControlConfig) -> bool:
    """Whether a position counts as the goal's."""
    away = math.hypot(position[0] - target[0], position[1] - target[1])
    turn = abs((position[2] - target[2] + 180) % 360 - 180)
    return away <= config.distance and turn <= config.angle


def where(source: Branching) -> Position:
    """The player's exact state.

    Raises:
        DataError: the game does not know it, so success cannot be judged.
    """
    position = source.position()
    if position is None:
        raise DataError("control: this game does not say where its player is")
    return position


@dataclass(frozen=True)
class StateTable:
    """Every state that can be reached, found by breadth-first branching."""

    places: tuple[Position, ...]
    frames: npt.NDArray[np.uint8]
    """[S, h, w, 3]."""
    outcomes: npt.NDArray[np.int64]
    """[S, A]: the state after each action; an end of the game leads to itself."""

    @cached_property
    def index(self) -> dict[Position, int]:
        """Position -> state."""
        return {place: number for number, place in enumerate(self.places)}

    @cached_property
    def steps(self) -> npt.NDArray[np.float64]:
        """[S, S]: shortest paths; infinite where there is none."""
        from scipy.sparse import coo_matrix
        from scipy.sparse.csgraph import shortest_path

        count, actions = self.outcomes.shape
        start = np.repeat(np.arange(count), actions)
        end = self.outcomes.reshape(-1)
        moved = start != end
        edges = (np.ones(moved.sum()), (start[moved], end[moved]))
        graph = coo_matrix(edges, shape=(count, count)).tocsr()
        found: npt.NDArray[np.float64] = shortest_path(graph, unweighted=True)
        return found


def explore(source: Branching, seed: int, actions: tuple[int, ...]) -> StateTable:
    """Find every state by saving, acting and restoring; position must tell states apart.

    Args:
        source: a game with few states and no chance.
        seed: of the episode explored.
        actions: game actions to try in each state.

    Raises:
        DataError: more states than can be listed.
    """
    source.reset(seed)
    first = where(source)
    places, frames = [first], [source.frame().copy()]
    outcomes: list[list[int]] = []
    index = {first: 0}
    queue: deque[Any] = deque([(source.save(), False)])
    with Progress("explore", total=None, unit="states") as progress:
        while queue:
            handle, over = queue.popleft()
            row = [len(outcomes)] * len(actions)
            for place, action in enumerate(() if over else actions):
                source.restore(handle)
                outcome = source.step(action)
                state = where(source)
                if state not in index:
                    index[state] = len(places)
                    places.append(state)
                    frames.append(source.frame().copy())
                    queue.append((source.save(), outcome.done))
                row[place] = index[state]
            outcomes.append(row)
            progress.advance(1)
            if len(places) > _MAX_STATES:
                raise DataError(f"control: more than {_MAX_STATES} states; goals must be `played`")
    return StateTable(tuple(places), np.stack(frames), np.array(outcomes))


def explored_tasks(
    source: Branching, table: StateTable, config: ControlConfig, seed: int
) -> list[Task]:
    """Random starts, and as goals any state elsewhere, however it faces unless ``angle`` says.

    Args:
        source: gives the starts: those of the game's own resets.
        table: the states.
        config: how many, and when a goal is reached.
        seed: which of the evaluation's seeds.
    """
    rng = np.random.default_rng(derive_seed(config.first_seed, "tasks", seed))
    place = np.array(table.places)
    tasks: list[Task] = []
    while len(tasks) < config.tasks:
        episode = derive_seed(config.first_seed, seed, len(tasks), int(rng.integers(2**31)))
        source.reset(episode)
        start = table.index[where(source)]
        goal = int(rng.integers(len(place)))
        same = [reached(other, table.places[goal], config) for other in table.places]
        shortest = float(table.steps[start, np.flatnonzero(same)].min())
        if 0 < shortest < math.inf:
            tasks.append(
                Task(
                    episode,
                    (),
                    table.frames[goal],
                    table.places[goal],
                    int(shortest),
                    math.ceil(config.budget * shortest),
                )
            )
    return tasks


def played_tasks(source: Branching, policy: Policy, config: ControlConfig, seed: int) -> list[Task]:
    """Starts and goals on the way of a policy; what is reached at the start is left out.

    Args:
        source: the game.
        policy: who leads to starts and goals, its actions being the game's.
        config: how many, how far.
        seed: which of the evaluation's seeds.

    Raises:
        DataError: the policy stays where it is, or the episodes end too early.
    """
    tasks: list[Task] = []
    for attempt in range(config.tasks * _MAX_TRIES):
        if len(tasks) == config.tasks:
            break
        episode = derive_seed(config.first_seed, seed, attempt)
        rng = np.random.default_rng(episode)
        frame = source.reset(episode)
        policy.reset(derive_seed(episode, "policy"))
        before = int(rng.integers(config.prefix_steps[0], config.prefix_steps[1] + 1))
        steps = int(rng.integers(config.goal_steps[0], config.goal_steps[1] + 1))
        taken: list[int] = []
        start: Position | None = None
        for number in range(before + steps):
            if number == before:
                start = where(source)
            taken.append(policy.choose(frame))
            outcome = source.step(taken[-1])
            if outcome.done or outcome.frame is None:
                break
            frame = outcome.frame
        else:
            target = where(source)
            if start is None or reached(start, target, config):
                continue
            if math.hypot(start[0] - target[0], start[1] - target[1]) >= config.away:
                budget = math.ceil(config.budget * steps)
                tasks.append(Task(episode, tuple(taken[:before]), frame, target, steps, budget))
    if len(tasks) < config.tasks:
        raise DataError(
            f"control: only {len(tasks)} of {config.tasks} tasks; the policy mostly stays within "
            "reach of its start, or its episodes end"
        )
    return tasks

"""Goal reaching: the planner against chance, imitation and an oracle, in the real game.

All arms play the same tasks with the same budget of steps. Nothing of the true state is shown
to an arm but the oracle; it judges success alone.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from iwm.errors import ConfigError, DataError
from iwm.evaluation.arms import (
    Arm,
    CloningArm,
    Eye,
    ModelArm,
    OracleArm,
    PolicyArm,
    fit_cloning,
)
from iwm.evaluation.control_config import ControlConfig
from iwm.evaluation.goals import (
    StateTable,
    Task,
    explore,
    explored_tasks,
    played_tasks,
    reached,
    where,
)
from iwm.evaluation.statistics import Figure, bootstrap_mean
from iwm.gameplay.config import RecordPlan
from iwm.gameplay.policies import RandomHold
from iwm.gameplay.sources import Branching
from iwm.planning.distance import Imagine, TemporalDistance, fit_distance
from iwm.planning.dynamics import Discrete, named_vectors
from iwm.planning.steps import StepNetwork, fit_steps
from iwm.progress import Progress

_RANK_PAIRS = 5000


@dataclass(frozen=True)
class Recorded:
    """Play that distance and cloning learn from, in the order of play.

    ``latents`` [N, D]; ``actions`` [N] positions in the model's vocabulary, -1: none;
    ``episode`` int64 [N], labels that no two episodes share.
    """

    latents: Tensor
    actions: np.ndarray[Any, Any]
    episode: np.ndarray[Any, Any]


@dataclass(frozen=True)
class Attempt:
    """How one arm did on one task."""

    success: bool
    steps: int
    shortest: int
    seconds: float
    decisions: tuple[float, ...]
    """Seconds of each decision: encoding, planning, choosing."""


@dataclass(frozen=True)
class Control:
    """What :func:`control` measured, and the distance that it fitted."""

    figures: dict[str, Any]
    distance: TemporalDistance | StepNetwork


def control(
    model: Any, source: Branching, plan: RecordPlan, recorded: Recorded, config: ControlConfig
) -> Control:
    """Measure goal reaching.

    Args:
        model: an action-conditioned model, in eval mode.
        source: the game, able to branch.
        plan: how the recordings were made; its policy is the random arm's.
        recorded: training play, encoded by the model.
        config: tasks and arms.

    Raises:
        ConfigError: an action that the game or the model lacks.
        DataError: no tasks can be made.
    """
    names = config.actions or source.actions
    for known, owner in ((source.actions, plan.game), (model.vocabulary, "the model")):
        missing = [name for name in names if name not in known]
        if missing:
            raise ConfigError(f"control: {owner} has no action {missing[0]!r}; {', '.join(known)}")
    space = Discrete(tuple(names))
    actions = tuple(source.actions.index(name) for name in names)
    eye = Eye(model)
    positions = {model.vocabulary.index(name): place for place, name in enumerate(names)}
    taken = np.array([positions.get(int(action), -1) for action in recorded.actions])
    distance: TemporalDistance | StepNetwork
    if config.temporal == "graph":
        imagine = imagination(model, space) if config.graph.imagined else None
        distance = fit_distance(recorded.latents, recorded.episode, config.graph, imagine, taken)
    else:
        distance = fit_steps(recorded.latents, recorded.episode, config.network)
    network = fit_cloning(recorded.latents, taken, recorded.episode, len(names), config.cloning)

    table: StateTable | None = None
    if config.goals == "explored":
        table = explore(source, config.first_seed, actions)
    attempts: dict[str, list[Attempt]] = {}
    played: list[Task] = []
    with Progress("control", config.seeds * config.tasks, "tasks") as progress:
        for seed in range(config.seeds):
            habit = RandomHold(len(source.actions), plan.hold_min, plan.hold_max)
            if table is not None:
                tasks = explored_tasks(source, table, config, seed)
            else:
                tasks = played_tasks(source, habit, config, seed)
            played += tasks
            arms: dict[str, Arm] = {
                "model": ModelArm(model, space, config, distance, seed),
                "random": PolicyArm(RandomHold(len(names), plan.hold_min, plan.hold_max)),
                "cloning": CloningArm(network),
            }
            if table is not None or config.oracle_solver is not None:
                arms["oracle"] = OracleArm(
                    source, actions, space, config, distance, eye, seed, table
                )
            for number, task in enumerate(tasks):
                for name, arm in arms.items():
                    if name == "oracle" and number >= (config.oracle_tasks or config.tasks):
                        continue
                    attempt = _attempt(arm, source, task, actions, eye, config, number)
                    attempts.setdefault(name, []).append(attempt)
                progress.advance(1)
    figures: dict[str, Any] = {
        name: summary(found, config.bootstrap) for name, found in attempts.items()
    }
    for other in ("random", "cloning"):
        figures["model"][f"above_{other}"] = paired(
            attempts["model"], attempts[other], config.bootstrap
        )
    shortest = np.array([task.shortest for task in played], float)
    figures["tasks"] = {
        "seeds": config.seeds,
        "per_seed": config.tasks,
        "shortest": bootstrap_mean(shortest, np.arange(len(shortest)), resamples=config.bootstrap),
    }
    figures["temporal_distance"] = {"kind": config.temporal}
    if isinstance(distance, TemporalDistance):
        figures["temporal_distance"] |= {
            "nodes": len(distance.nodes),
            "coverage": distance.coverage,
            "link": distance.link,
            "imagined": distance.imagined,
        }
    if table is not None:
        figures["temporal_distance"]["rank_correlation"] = rank_correlation(
            distance, eye(list(table.frames)), table, config.bootstrap
        )
    return Control(figures, distance)


def imagination(model: Any, space: Discrete) -> Imagine:
    """What a model predicts for every action of a space, from the frame alone."""
    vectors = named_vectors(model, space).to(next(model.parameters()).device)

    def imagine(latents: Tensor) -> Tensor:
        count, actions = len(latents), len(vectors)
        z_cls = latents.to(vectors).repeat_interleave(actions, dim=0)
        predicted: Tensor = model.rollout(z_cls, vectors.repeat(count, 1).unsqueeze(1)).z_cls
        return predicted.view(count, actions, -1)

    return imagine


def _attempt(
    arm: Arm,
    source: Branching,
    task: Task,
    actions: tuple[int, ...],
    eye: Eye,
    config: ControlConfig,
    number: int,
) -> Attempt:
    """Play one task with one arm."""
    frame = source.reset(task.seed)
    for action in task.prefix:
        outcome = source.step(action)
        if outcome.frame is None:
            raise DataError("control: a start cannot be reached again; the game is not repeatable")
        frame = outcome.frame
    arm.begin(eye([task.goal])[0], number)
    started, decisions, success, steps = time.perf_counter(), [], False, 0
    while steps < task.budget and not success:
        before = time.perf_counter()
        chosen = arm.act(eye([frame])[0], frame)
        decisions.append(time.perf_counter() - before)
        outcome = source.step(actions[chosen])
        steps += 1
        if outcome.frame is None:  # the game is over and shows nothing
            break
        success = reached(where(source), task.target, config)
        if outcome.done or outcome.truncated:
            break
        frame = outcome.frame
    seconds = time.perf_counter() - started
    return Attempt(success, steps, task.shortest, seconds, tuple(decisions))


def summary(attempts: list[Attempt], resamples: int) -> dict[str, Figure]:
    """Success, path length against the shortest (successes alone), seconds."""
    task = np.arange(len(attempts))
    success = np.array([attempt.success for attempt in attempts], float)
    figures = {
        "success": bootstrap_mean(success, task, resamples=resamples),
        "task_s": bootstrap_mean(
            np.array([attempt.seconds for attempt in attempts]), task, resamples=resamples
        ),
        "decision_ms": bootstrap_mean(
            1000 * np.concatenate([attempt.decisions for attempt in attempts]),
            np.repeat(task, [len(attempt.decisions) for attempt in attempts]),
            resamples=resamples,
        ),
    }
    won = [attempt for attempt in attempts if attempt.success]
    if won:
        ratio = np.array([attempt.steps / attempt.shortest for attempt in won])
        figures["path_ratio"] = bootstrap_mean(ratio, np.arange(len(won)), resamples=resamples)
    return figures


def paired(one: list[Attempt], other: list[Attempt], resamples: int) -> Figure:
    """Success of one arm above another's on the same tasks."""
    pairs = zip(one, other, strict=True)
    difference = np.array([float(a.success) - float(b.success) for a, b in pairs])
    return bootstrap_mean(difference, np.arange(len(difference)), resamples=resamples)


def rank_correlation(
    distance: TemporalDistance | StepNetwork, latents: Tensor, table: StateTable, resamples: int
) -> Figure:
    """Spearman's correlation of learned and true steps over random pairs of states.

    The interval is over resampled goals.
    """
    from scipy.stats import rankdata

    rng = np.random.default_rng(0)
    goals = rng.integers(len(latents), size=max(2, _RANK_PAIRS // 50))
    learned, true, label = [], [], []
    for number, goal in enumerate(goals):
        starts = rng.integers(len(latents), size=50)
        starts = starts[np.isfinite(table.steps[starts, goal])]
        learned.append(distance.to_goal(latents[goal])(latents[starts]).numpy())
        true.append(table.steps[starts, goal])
        label.append(np.full(len(starts), number))
    a, b = rankdata(np.concatenate(learned)), rankdata(np.concatenate(true))
    product = (a - a.mean()) / a.std() * (b - b.mean()) / b.std()
    return bootstrap_mean(product, np.concatenate(label), resamples=resamples)

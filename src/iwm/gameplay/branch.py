"""Branching a game: from one state, what does every action lead to?

A policy plays fresh episodes, seeded so that none was ever recorded. At chosen steps the
game's state is saved, every action of the vocabulary is tried from it, and the game is put
back and played on. From the same states two things are made that cannot happen: the outcome
with an object gone from the world, and the outcome somewhere else in the level.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from iwm.gameplay.config import BranchConfig, RecordPlan
from iwm.gameplay.fresh import from_fresh_episodes
from iwm.gameplay.play import derive_seed
from iwm.gameplay.policies import Policy
from iwm.gameplay.sources import Branching, Frame, Position


@dataclass(frozen=True)
class BranchedState:
    """One state and its outcomes; frames at the plan's size."""

    vocabulary: tuple[str, ...]
    """The game's action names."""
    episode: int
    step: int
    """Steps played before the state."""
    frames: tuple[Frame, ...]
    """Context, oldest first; the last is the state's own."""
    actions: tuple[int, ...]
    """Taken between the frames: one fewer than they are."""
    outcomes: tuple[Frame | None, ...]
    """After each action; ``None`` where the game ends and shows nothing."""
    taken: int
    """The action that the policy took."""
    position: Position | None
    removed: Frame | None
    """The outcome of ``taken`` with an object removed, if there was one."""
    teleported: Frame | None
    """The outcome of ``taken`` from another place of the level, if there is one."""


def branch_states(
    plan: RecordPlan, states: int, config: BranchConfig, record_seed: int
) -> Iterator[BranchedState]:
    """Play fresh episodes of a plan and branch them.

    Args:
        plan: game, frame skip, size and policy (``keyboard`` is played by ``random_hold``).
        states: how many to yield.
        config: context, spacing and seed.
        record_seed: ``record.seed``; whose episodes are avoided.

    Yields:
        ``states`` states, in order of episode and step.

    Raises:
        ConfigError: the plan does not fit its game.
        DataError: the game does not start, cannot branch, or its episodes are too short.
    """
    return from_fresh_episodes(
        plan,
        "branch",
        (record_seed, config.seed),
        partial(_episode, plan, config),
        states,
        config.states_per_episode,
        f"ended before a state with {config.history} frames of context could be branched",
    )


def _episode(
    plan: RecordPlan,
    config: BranchConfig,
    source: Branching,
    policy: Policy,
    seed: int,
    episode: int,
    wanted: int,
) -> Iterator[BranchedState]:
    """Up to ``wanted`` states of one episode."""
    frames, actions = [source.reset(seed)], list[int]()
    policy.reset(derive_seed(seed, "policy"))
    rng = np.random.Generator(np.random.PCG64(derive_seed(seed, "branch")))
    # A random start, so that states are not all of the same age.
    due = config.history - 1 + int(rng.integers(config.every))
    for step in range(plan.max_episode_steps - 1):
        taken = policy.choose(frames[-1])
        if step == due:
            due += config.every
            state = _branch(source, taken, rng)
            outcomes, position, removed, teleported = state
            # The policy's action must lead somewhere, and there must be something to tell apart.
            if outcomes[taken] is not None and sum(o is not None for o in outcomes) > 1:
                wanted -= 1
                yield BranchedState(
                    source.actions,
                    episode,
                    step,
                    tuple(frames[-config.history :]),
                    tuple(actions[len(actions) - config.history + 1 :]),
                    outcomes,
                    taken,
                    position,
                    removed,
                    teleported,
                )
            if not wanted:
                return
        outcome = source.step(taken)
        if outcome.frame is None or outcome.done or outcome.truncated:
            return
        frames.append(outcome.frame)
        actions.append(taken)


def _branch(
    source: Branching, taken: int, rng: np.random.Generator
) -> tuple[tuple[Frame | None, ...], Position | None, Frame | None, Frame | None]:
    """Every action's outcome from here, and what cannot happen; the source is put back."""
    here = source.save()
    position = source.position()
    outcomes = []
    for action in range(len(source.actions)):
        source.restore(here)
        outcomes.append(source.step(action).frame)
    anomalies: list[Frame | None] = []
    changes: tuple[Callable[[], bool], ...] = (
        lambda: source.remove_object(taken) is not None,
        lambda: source.teleport(rng),
    )
    for change in changes:
        source.restore(here)
        anomalies.append(source.step(taken).frame if change() else None)
    source.restore(here)
    return tuple(outcomes), position, anomalies[0], anomalies[1]

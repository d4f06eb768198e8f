"""Objects that an engine takes away in the midst of play, to learn from what that looks like.

A policy plays fresh episodes, none of which was recorded or branched. Now and then the most
prominent object is taken out of the world before the next step; the frame that comes then is
kept, the game is put back and played on as if nothing had been.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from iwm.gameplay.config import RecordPlan, RemovalConfig
from iwm.gameplay.fresh import from_fresh_episodes
from iwm.gameplay.play import derive_seed
from iwm.gameplay.policies import Policy
from iwm.gameplay.sources import Branching, Frame, Mask


@dataclass(frozen=True)
class Removal:
    """One object that was taken away; frames at the plan's size."""

    episode: int
    frames: tuple[Frame, Frame, Frame]
    """The last two frames, older first, and what came without the object."""
    gone: Mask
    """Pixels of the second frame that showed it."""


def play_removals(
    plan: RecordPlan, count: int, config: RemovalConfig, record_seed: int
) -> Iterator[Removal]:
    """Play fresh episodes of a plan and take objects away.

    Args:
        plan: game, frame skip, size and policy (``keyboard`` is played by ``random_hold``).
        count: how many to yield.
        config: spacing and seed.
        record_seed: ``record.seed``, whose episodes are avoided.

    Yields:
        ``count`` removals, in order of episode and step.

    Raises:
        ConfigError: the plan does not fit its game.
        DataError: the game does not start, or has no object to take away.
    """
    return from_fresh_episodes(
        plan,
        "removals",
        (record_seed, config.seed),
        partial(_episode, plan, config),
        count,
        config.removals_per_episode,
        "showed no object that could be taken away",
    )


def _episode(
    plan: RecordPlan,
    config: RemovalConfig,
    source: Branching,
    policy: Policy,
    seed: int,
    episode: int,
    wanted: int,
) -> Iterator[Removal]:
    """Up to ``wanted`` removals of one episode."""
    frames = [source.reset(seed)]
    policy.reset(derive_seed(seed, "policy"))
    rng = np.random.Generator(np.random.PCG64(derive_seed(seed, "removals")))
    due = 1 + int(rng.integers(2 * config.every))  # not the first step: two frames are kept
    for step in range(plan.max_episode_steps - 1):
        taken = policy.choose(frames[-1])
        if step >= due:
            here = source.save()
            gone = source.remove_object(taken)
            without = None if gone is None else source.step(taken).frame
            source.restore(here)
            # Without one in view, the next step is as good.
            if gone is not None and without is not None and gone.any():
                due = step + 1 + int(rng.integers(2 * config.every))
                yield Removal(episode, (frames[-2], frames[-1], without), gone)
                wanted -= 1
            if not wanted:
                return
        outcome = source.step(taken)
        if outcome.frame is None or outcome.done or outcome.truncated:
            return
        frames.append(outcome.frame)

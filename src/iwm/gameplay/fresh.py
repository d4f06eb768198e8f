"""Fresh episodes of the recorded games: evaluation and interventions are made from these."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import closing
from typing import Protocol, TypeVar

from iwm.errors import DataError
from iwm.gameplay.config import RecordPlan
from iwm.gameplay.play import derive_seed
from iwm.gameplay.policies import Policy, automatic_policy
from iwm.gameplay.sources import Branching, open_branching

Made = TypeVar("Made", covariant=True)

_MAX_EMPTY_EPISODES = 100


class Episode(Protocol[Made]):
    """Plays one episode and makes something of it, now and then."""

    def __call__(
        self, source: Branching, policy: Policy, seed: int, episode: int, wanted: int
    ) -> Iterator[Made]:
        """Up to ``wanted`` things from the episode of a seed, which has a number."""
        ...


def fresh_seeds(purpose: str, plan: RecordPlan, record_seed: int, seed: int) -> Iterator[int]:
    """Seeds of fresh episodes, for ever; other ones for each purpose.

    None of them is one that ``record`` can have used for this plan.

    Args:
        purpose: what is made of them, e.g. ``branch``.
        plan: the recording's plan.
        record_seed: ``record.seed``.
        seed: of what is made, e.g. ``branch.seed``.
    """
    # An episode has a frame at least, but for a bounded number of empty ones.
    most = plan.frames + _MAX_EMPTY_EPISODES
    recorded = {derive_seed(record_seed, plan.name, attempt) for attempt in range(most)}
    number = 0
    while True:
        fresh = derive_seed(purpose, seed, plan.name, number)
        if fresh not in recorded:
            yield fresh
        number += 1


def from_fresh_episodes(
    plan: RecordPlan,
    purpose: str,
    seeds: tuple[int, int],
    play: Episode[Made],
    count: int,
    per_episode: int,
    empty: str,
) -> Iterator[Made]:
    """Play fresh episodes of a plan until enough was made of them.

    Args:
        plan: game, frame skip, size and policy (``keyboard`` is played by ``random_hold``).
        purpose: what is made, see :func:`fresh_seeds`.
        seeds: ``record.seed``, and that of what is made.
        play: plays an episode; those from which nothing came have no number.
        count: how many to yield.
        per_episode: at most.
        empty: what an episode from which nothing came did, for the error.

    Raises:
        ConfigError: the plan does not fit its game.
        DataError: the game does not start, or nothing comes of it.
    """
    if plan.policy == "keyboard":
        plan = dataclasses.replace(plan, policy="random_hold")
    with closing(open_branching(plan)) as source:
        policy = automatic_policy(plan, source.actions)
        found = episode = in_vain = 0
        for seed in fresh_seeds(purpose, plan, *seeds):
            before = found
            for made in play(source, policy, seed, episode, min(per_episode, count - found)):
                found += 1
                yield made
            if found == count:
                return
            in_vain = 0 if found > before else in_vain + 1
            if in_vain == _MAX_EMPTY_EPISODES:
                raise DataError(f"{purpose}: {plan.name}: {in_vain} episodes in a row {empty}")
            episode += 1 if found > before else 0

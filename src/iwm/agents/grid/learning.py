"""Training the communicating policy, and measuring it.

Every arm trains the same network for the same number of games by imitating the central planner in
the states that the policy itself reaches (DAgger, arXiv 1011.0686), through whole games. What the
planner would do depends on what an agent cannot see; only messages can tell.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from iwm.agents.grid.config import GridConfig, LearnConfig
from iwm.agents.grid.imagination import Imagination, learn_transitions
from iwm.agents.grid.messages import Arm, Channel, Heard, IntentionBook, goal_of
from iwm.agents.grid.policy import Choice, Policy, look_ahead, others_bits, senses
from iwm.agents.grid.world import Games, Sight, assignment, cell_of, pair_numbers


class Team:
    """The agents of some games: one network, one channel, what they remember.

    Args:
        policy: the network.
        channel: how they talk.
    """

    def __init__(self, policy: Policy, channel: Channel) -> None:
        self.policy, self.channel = policy, channel
        self.imagination = channel.book.imagination
        self.reset()

    def reset(self) -> None:
        """Forget the game."""
        self._memory: Tensor | None = None
        self._heard = Heard(None, None)
        self._spoke_at = 0
        self.target: Tensor | None = None

    def act(self, sight: Sight) -> tuple[Tensor, Choice]:
        """Read the last round's messages, imagine, choose, tell, act.

        Returns:
            Actions int64 ``[B, N]``, and what the network said.
        """
        if self.target is None:
            self.target = torch.full(sight.position.shape[:2], -1)
        heard = self._heard
        if heard.plans is not None and sight.clock > self._spoke_at:
            heard = Heard(heard.plans.a_step_later(self.imagination), heard.bits)
        seen = senses(sight, self.imagination, self.target)
        bits = others_bits(heard.bits, (len(seen), seen.shape[1]))
        ahead = look_ahead(sight, heard, self.imagination)
        choice = self.policy(seen, bits, ahead, self._memory)
        with torch.no_grad():
            self.target, confidence = choice.best()
        self._memory = choice.memory
        said = self.channel.bits(choice.bit)
        self._heard = Heard(self.channel.plans(sight, self.target, confidence), said)
        self._spoke_at = sight.clock
        goal = goal_of(sight, self.target)
        size = self.imagination.size
        return self.imagination.action[cell_of(sight.position, size), cell_of(goal, size)], choice


def learn(
    config: GridConfig,
    settings: LearnConfig,
    arm: Arm,
    book: IntentionBook,
    report: Callable[[float], None] | None = None,
) -> Team:
    """Train one arm's policy.

    Args:
        config: the game.
        settings: the budget, the same for all arms.
        arm: how the agents talk.
        book: their world model, and the messages made with it.
        report: is told the loss of every update.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        policy = Policy(settings.width)
        team = Team(policy, Channel(arm, book))
        _, first = team.act(Games(config, settings.games, _board(settings.seed, -1)).look())
        policy.find_voice(first.bit)
        optimizer = torch.optim.Adam(policy.parameters(), lr=settings.learning_rate)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, settings.learning_rate, total_steps=settings.updates, pct_start=0.1
        )
        number = pair_numbers(config.agents)[0]
        for update in range(settings.updates):
            games = Games(config, settings.games, _board(settings.seed, update))
            team.reset()
            losses, weights = [], []
            limit = int(needed(games).max()) + 2
            team.act(games.look())  # the opening round: talk alone
            while games.clock < limit and bool(games.active.any()):
                before = team.target
                action, choice = team.act(games.look())
                wanted = assignment(games.position, games.tasks, before)
                pair = number[torch.arange(config.agents), wanted.partner]
                right = choice.log_likelihood(pair, wanted.task)
                weight = games.active[:, None].expand_as(right).float()
                losses.append(-(right * weight).sum())
                weights.append(weight.sum())
                games.step(action)
            loss = torch.stack(losses).sum() / torch.stack(weights).sum()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            if report is not None:
                report(float(loss.detach()))
    return team


def _board(seed: int, update: int) -> int:
    """The seed of an update's boards; those of tests are below a million."""
    return 1_000_000 * (seed + 1) + update


@dataclass(frozen=True)
class Played:
    """Finished games."""

    steps: Tensor
    """int64 ``[B]``: moves until all were at work; -1: more than twice the planner's."""
    planned: Tensor
    """int64 ``[B]``: what the central planner needs on the same board."""
    busy: Tensor
    """``[B]``: the share of agents at work after as many moves as the planner needs."""

    def won(self, slack: float = 0.0) -> Tensor:
        """bool ``[B]``: at work when the planner would have been.

        Args:
            slack: moves allowed beyond the planner's, as a share of them.
        """
        return (self.steps >= 0) & (self.steps <= torch.ceil(self.planned * (1 + slack)))


@torch.no_grad()
def measure(config: GridConfig, team: Team, count: int, seed: int) -> Played:
    """Let a team play boards that it has not trained on."""
    games = Games(config, count, seed)
    planned = needed(games)
    busy = games.at_work().float().mean(1)
    team.reset()
    team.act(games.look())
    while games.clock < 2 * int(planned.max()) and bool(games.active.any()):
        action, _ = team.act(games.look())
        games.step(action)
        busy = torch.where(games.clock <= planned, games.at_work().float().mean(1), busy)
    late = games.finished_at > 2 * planned
    return Played(torch.where(late, -1, games.finished_at), planned, busy)


def needed(games: Games) -> Tensor:
    """Moves ``[B]`` that the central planner needs from here."""
    return assignment(games.position, games.tasks).moves


def imagination_of(config: GridConfig, settings: LearnConfig) -> tuple[Imagination, float]:
    """Learn the grid; also returns the share of transitions predicted exactly."""
    model, exact = learn_transitions(
        config.size, updates=settings.model_updates, seed=settings.seed
    )
    return Imagination(model), exact

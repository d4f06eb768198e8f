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
from torch.nn import functional as F

from iwm.agents.grid.config import GridConfig, LearnConfig
from iwm.agents.grid.imagination import Imagination, learn_transitions
from iwm.agents.grid.messages import Arm, Channel, IntentionBook, Plans, goal_of, hear
from iwm.agents.grid.policy import Choice, Policy, senses
from iwm.agents.grid.world import Games, Sight, assignment, cell_of


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
        self._heard: tuple[Plans | None, Tensor | None] = (None, None)
        self.target: Tensor | None = None

    def act(self, sight: Sight, *, training: bool = False) -> tuple[Tensor, Choice]:
        """Read the last round's messages, choose, imagine, tell, act.

        Returns:
            Actions int64 ``[B, N]``, and what the network said.
        """
        if self.target is None:
            self.target = torch.full(sight.position.shape[:2], -1)
        seen, steps = senses(sight, self.imagination, self.target)
        plans, bits = self._heard
        heard = hear(plans, bits, sight.tasks, steps, self.imagination.size)
        choice = self.policy(seen, heard, self._memory)
        confidence, self.target = choice.logits.detach().softmax(-1).max(-1)
        self._memory = choice.memory
        said = self.channel.bits(choice.bit, training=training)
        self._heard = self.channel.plans(sight, self.target, confidence), said
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
        optimizer = torch.optim.Adam(policy.parameters(), lr=settings.learning_rate)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, settings.learning_rate, total_steps=settings.updates, pct_start=0.1
        )
        for update in range(settings.updates):
            games = Games(config, settings.games, _board(settings.seed, update))
            team.reset()
            losses, weights = [], []
            limit = int(needed(games).max()) + 2
            team.act(games.look(), training=True)  # the opening round: talk alone
            while games.clock < limit and bool(games.active.any()):
                before = team.target
                action, choice = team.act(games.look(), training=True)
                wanted = assignment(games.position, games.tasks, before)[0]
                wrong = F.cross_entropy(
                    choice.logits.flatten(0, 1), wanted.flatten(), reduction="none"
                )
                weight = games.active[:, None].expand_as(wanted).flatten().float()
                losses.append((wrong * weight).sum())
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
    team.reset()
    team.act(games.look())
    while games.clock < 2 * int(planned.max()) and bool(games.active.any()):
        action, _ = team.act(games.look())
        games.step(action)
    late = games.finished_at > 2 * planned
    return Played(torch.where(late, -1, games.finished_at), planned)


def needed(games: Games) -> Tensor:
    """Moves ``[B]`` that the central planner needs from here."""
    return assignment(games.position, games.tasks)[1]


def imagination_of(config: GridConfig, settings: LearnConfig) -> tuple[Imagination, float]:
    """Learn the grid; also returns the share of transitions predicted exactly."""
    model, exact = learn_transitions(
        config.size, updates=settings.model_updates, seed=settings.seed
    )
    return Imagination(model), exact

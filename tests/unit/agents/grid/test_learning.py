"""Training really learns, and intentions help."""

from __future__ import annotations

import torch

from iwm.agents.grid.config import GridConfig, LearnConfig
from iwm.agents.grid.learning import Played, imagination_of, learn, measure
from iwm.agents.grid.messages import Arm, IntentionBook


def test_intentions_beat_silence() -> None:
    config = GridConfig(size=6, tasks=7, view=1)
    settings = LearnConfig(updates=60, games=64, width=16, model_updates=100)
    imagination, exact = imagination_of(config, settings)
    assert exact == 1.0
    book = IntentionBook(imagination)
    won: dict[Arm, float] = {}
    arms: tuple[Arm, ...] = ("silent", "intention")
    for arm in arms:
        losses: list[float] = []
        team = learn(config, settings, arm, book, losses.append)
        assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
        won[arm] = float(measure(config, team, 400, seed=5).won().float().mean())
    assert won["intention"] > won["silent"] + 0.15, won


def test_training_repeats() -> None:
    config = GridConfig(size=6, tasks=4)
    settings = LearnConfig(updates=2, games=8, width=8, model_updates=50)
    book = IntentionBook(imagination_of(config, settings)[0])
    one: list[float] = []
    again: list[float] = []
    learn(config, settings, "bit", book, one.append)
    torch.rand(1)  # whatever is drawn elsewhere
    learn(config, settings, "bit", book, again.append)
    assert one == again


def test_games_are_won_against_the_planner() -> None:
    played = Played(torch.tensor([10, 12, 13, -1]), torch.full((4,), 10), torch.ones(4))
    assert played.won().tolist() == [True, False, False, False]
    assert played.won(0.2).tolist() == [True, True, False, False]
    assert played.won(0.25).tolist() == [True, True, True, False]

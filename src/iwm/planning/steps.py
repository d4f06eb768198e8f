"""Steps to a goal as a small network: for worlds where no view ever comes back exactly.

Where frames do not recur, recorded play is no connected graph (see
:mod:`iwm.planning.distance`). Here a network looks at two latents and tells the steps between
them, learned from pairs of frames of one episode by an expectile below the mean: of all the
ways in which players got from one view to the other, nearer to the short ones (implicit
Q-learning's expectile, arXiv 2110.06169, on hindsight pairs). Two heads are averaged: a
difference of embeddings, which is zero at the goal, and a network of both latents, which can
tell there from back.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from iwm.errors import DataError, ModelError
from iwm.models.encoder import load_state
from iwm.models.saving import WEIGHTS_FILE, read_config, read_weights, save_model
from iwm.planning.config import StepsConfig
from iwm.settings import parse, to_dict

NAME = "steps-to-goal"


class StepNetwork(nn.Module):
    """Latents [N, D] and goals [N, D] -> steps [N].

    Args:
        width: D.
        config: settings.
    """

    def __init__(self, width: int, config: StepsConfig) -> None:
        super().__init__()
        self.config, self.width = config, width
        hidden = config.hidden
        self.embed = nn.Sequential(
            nn.Linear(width, hidden), nn.LayerNorm(hidden), nn.GELU(), nn.Linear(hidden, hidden)
        )
        self.compare = nn.Sequential(
            nn.Linear(3 * width, hidden),
            nn.LayerNorm(hidden),
            nn.GELU(),
            nn.Linear(hidden, hidden),
            nn.GELU(),
            nn.Linear(hidden, 1),
        )

    def forward(self, latents: Tensor, goals: Tensor) -> Tensor:
        """The two heads' answers, [2, N]."""
        apart = (self.embed(latents) - self.embed(goals)).square().sum(-1).add(1e-6).sqrt()
        both = torch.cat([latents, goals, (latents - goals).abs()], dim=-1)
        return torch.stack([apart, self.compare(both).squeeze(-1)])

    def to_goal(self, goal: Tensor) -> Callable[[Tensor], Tensor]:
        """The steps to one goal [D], as a function of latents [N, D].

        Raises:
            ModelError: a goal of another width.
        """
        if goal.numel() != self.width:
            raise ModelError(
                f"the step network knows latents of {self.width} dimensions, the goal has "
                f"{goal.numel()}"
            )

        @torch.no_grad()
        def steps(latents: Tensor) -> Tensor:
            answers: Tensor = self(latents, goal.reshape(1, -1).expand(len(latents), -1))
            return answers.mean(0)

        return steps

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config.json and model.safetensors."""
        save_model(
            Path(folder), NAME, to_dict(self.config), self.state_dict(), latent_dim=self.width
        )

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> StepNetwork:
        """Read what :meth:`save_pretrained` wrote.

        Raises:
            ModelError: missing, damaged or newer.
        """
        folder = Path(folder)
        document = read_config(folder, NAME)
        config = parse(StepsConfig, document["settings"], str(folder))
        width = document.get("latent_dim")
        if not isinstance(width, int) or width < 1:
            raise ModelError(f"{folder}: config.json has no latent_dim")
        network = cls(width, config)
        load_state(network, read_weights(folder), str(folder / WEIGHTS_FILE))
        return network.eval()


def fit_steps(
    latents: Tensor, episode: npt.NDArray[np.int64], config: StepsConfig | None = None
) -> StepNetwork:
    """Fit to recorded play; seconds on one core.

    Args:
        latents: [N, D] of frames in the order of play.
        episode: [N]; neighbours in the order with the same episode are one step apart.
        config: settings; the defaults if ``None``.

    Raises:
        DataError: no episode has two frames.
    """
    config = config or StepsConfig()
    if not (np.diff(episode) == 0).any():
        raise DataError("steps to a goal: no episode has two frames")
    latents = latents.float().cpu()
    rng = np.random.default_rng(config.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        network = StepNetwork(latents.shape[1], config)
    ends = np.append(np.flatnonzero(np.diff(episode)), len(episode) - 1)
    last = ends[np.searchsorted(ends, np.arange(len(episode)))]
    optimiser = torch.optim.AdamW(
        network.parameters(), lr=config.lr, weight_decay=config.weight_decay
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, config.steps)
    for _ in range(config.steps):
        start = rng.integers(len(latents), size=config.batch_size)
        ahead = rng.integers(config.horizon + 1, size=config.batch_size)
        goal = np.minimum(start + ahead, last[start])
        steps = (goal - start).astype(np.float32)
        # Any two frames of the whole data: mostly far, and it suffices to say so.
        anywhere = rng.random(config.batch_size) < config.anywhere
        goal[anywhere] = rng.integers(len(latents), size=int(anywhere.sum()))
        steps[anywhere] = config.far
        over = network(latents[start], latents[goal]) - torch.from_numpy(steps)
        weight = torch.where(over > 0, 1 - config.expectile, config.expectile)
        loss = (weight * over.square()).mean(1).sum()
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()
        schedule.step()
    return network.eval()

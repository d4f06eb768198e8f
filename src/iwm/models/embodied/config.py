"""Configuration of the embodied world model. Plain values only."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from iwm.errors import ConfigError
from iwm.models.config import Positive, Share, Weight
from iwm.settings import settings


@settings
class EmbodiedObjectiveConfig:
    """Weights of the training loss; a weight of 0 leaves the term out."""

    state: Weight = 1.0
    """Squared error of the states, in standard deviations, one step ahead and along rollouts."""
    reward: Weight = 1.0
    """Squared error of the rewards, in standard deviations."""
    error: Weight = 0.1
    """Negative log-likelihood of the errors under the deviation that the model gives."""
    kl: Weight = 0.1
    """Divergence of what a step drew from what the model would have drawn unseen."""
    free_nats: Weight = 0.1
    """Divergence per step that costs nothing."""
    sampled_share: Share = 0.25
    """Share of the rows whose steps draw from the posterior; the others roll out the mean, as
    predictions do."""
    rollout_steps: tuple[Positive, Positive] = (5, 50)
    """Steps of the rollouts at the beginning and at the end of training."""


@settings
class EmbodiedConfig:
    """One world model on vector states."""

    state_dim: Annotated[int, Field(gt=0, le=4096)] = 256
    """S, numbers of a state."""
    action_dim: Annotated[int, Field(gt=0, le=256)] = 2
    """A, numbers of an action: a continuous one, or the one-hot of a named one."""
    latent_dim: Positive = 128
    """L, width of the recurrent latent."""
    stochastic_dim: Positive = 16
    """Z, numbers drawn at each step."""
    hidden_dim: Positive = 512
    """Width of the encoder's hidden layers."""
    step_dim: Positive = 128
    """Width of a step's hidden layer, which decides what a rollout costs."""
    horizon: Annotated[int, Field(gt=0, le=1000)] = 50
    """Steps that it is trained and measured on; the default of a rollout."""
    discount: Annotated[float, Field(gt=0, le=1)] = 0.99
    """Of the rewards in a rollout's return."""
    state_names: tuple[str, ...] = ()
    """What the numbers of a state are, where they have names."""
    vocabulary: tuple[str, ...] = ()
    """Names of the actions whose one-hot an action is; empty: actions are continuous."""
    objective: EmbodiedObjectiveConfig = EmbodiedObjectiveConfig()

    def __post_init__(self) -> None:
        """Refuse names that do not fit the sizes."""
        for what, names, size in (
            ("state_names", self.state_names, self.state_dim),
            ("vocabulary", self.vocabulary, self.action_dim),
        ):
            if names and len(names) != size:
                raise ConfigError(f"model.{what} has {len(names)} names for {size} numbers")

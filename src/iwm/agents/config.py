"""Configuration of agents."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, SecretStr

from iwm.errors import ConfigError
from iwm.settings import parse, settings

Positive = Annotated[int, Field(gt=0)]
Number = Annotated[float, Field(ge=0)]


@settings
class ArbiterConfig:
    """How actions are chosen."""

    horizon: Positive = 8
    """Actions of a plan."""
    candidates: Positive = 300
    """Sequences that one iteration of the search considers."""
    iterations: Positive = 10
    act: Positive = 1
    """Actions taken from one plan before the next is made; surprise ends it earlier."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Of the search."""
    actions: tuple[str, ...] = ()
    """Names to plan with; empty: all that the model knows."""
    wait_action: str = "wait"
    """What to do when there is nothing to do; the agent's own name for it."""
    surprise_threshold: Number = 2.0
    """Above it the agent slows down or waits."""
    on_surprise: Literal["slow", "wait"] = "slow"
    """``slow``: plan anew after every action; ``wait``: do nothing and look again."""
    max_waits: Positive = 3
    """Waits in a row; then it goes on, slowly, however surprising the world is."""
    confidence_threshold: Number = 0.5
    """Below it (``vision_mrr``) the reasoner is asked, if there is one."""
    reasoner_timeout_s: Annotated[float, Field(gt=0)] = 10.0

    def __post_init__(self) -> None:
        """Refuse to act longer than a plan."""
        if self.act > self.horizon:
            raise ConfigError(f"arbiter.act {self.act} exceeds arbiter.horizon {self.horizon}")


@settings
class ReasonerConfig:
    """A chat server with OpenAI's interface, DeepSeek's for one."""

    base_url: str
    model: str
    key: SecretStr = SecretStr("")
    """Never written out, whatever is written of this."""
    timeout_s: Annotated[float, Field(gt=0)] = 120.0
    """Of one whole answer."""
    retries: Annotated[int, Field(ge=0, le=10)] = 2
    """After a lost connection, a cut answer, 408, 409, 429 or 5xx; as late as the server asks."""
    max_characters: Positive = 200_000
    """Of one answer, thoughts included."""

    def __post_init__(self) -> None:
        """Refuse addresses that are none, or that hold a secret of their own."""
        if not self.base_url.startswith(("http://", "https://")):
            raise ConfigError("reasoner.base_url: expected http:// or https://")
        if "@" in self.base_url.split("://", 1)[1].split("/", 1)[0]:
            raise ConfigError("reasoner.base_url: expected no user or password; use the key")


_REASONER_VARIABLES = {
    "IWM_REASONER_URL": "base_url",
    "IWM_REASONER_MODEL": "model",
    "IWM_REASONER_KEY": "key",
    "IWM_REASONER_TIMEOUT_S": "timeout_s",
    "IWM_REASONER_RETRIES": "retries",
}


def reasoner_config(environ: Mapping[str, str] = os.environ) -> ReasonerConfig | None:
    """What the ``IWM_REASONER_*`` variables ask for; ``None`` without an address.

    Raises:
        ConfigError: a variable holds what its setting cannot be, or the model is not named.
    """
    values: dict[str, Any] = {
        name: environ[variable]
        for variable, name in _REASONER_VARIABLES.items()
        if environ.get(variable)
    }
    if "base_url" not in values:
        return None
    # What is wrong is quoted: the key must be hidden before anything can be.
    values["key"] = SecretStr(values.get("key", ""))
    if "model" not in values:
        raise ConfigError("IWM_REASONER_MODEL: expected the name of a model")
    return parse(ReasonerConfig, values, "reasoner")


@settings
class CoordinationConfig:
    """How agents go about a round."""

    deadline_s: Number = 0.02
    """The longest that a round waits for intentions."""
    patience: Positive = 3
    """Rounds in a row that an agent may be silent before nobody waits for it any more."""
    team: float = 1.0
    """Weight of the distance to the others' plans against one's own return, both in standard
    deviations over the futures: above 0 agents keep apart, below 0 together; 0: on their own."""
    caution: Number = 0.25
    """Weight of what is unsure about a future."""

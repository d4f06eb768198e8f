"""The embodied layer's world model on vector states. See docs/embodied.md."""

from iwm.models.embodied.config import EmbodiedConfig
from iwm.models.embodied.imagine import Imagined, Policy
from iwm.models.embodied.model import WorldModel

__all__ = ["EmbodiedConfig", "Imagined", "Policy", "WorldModel"]

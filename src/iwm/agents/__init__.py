"""The agent's side of the service: state, perception, choice of actions, coherence."""

from iwm.agents.arbiter import ActionArbiter, Decision
from iwm.agents.being_state import BeingState, VisionState, vision_snapshot
from iwm.agents.coherence import TemporalCoherence
from iwm.agents.config import ArbiterConfig
from iwm.agents.perception import IWMPerceptionModule

__all__ = [
    "ActionArbiter",
    "ArbiterConfig",
    "BeingState",
    "Decision",
    "IWMPerceptionModule",
    "TemporalCoherence",
    "VisionState",
    "vision_snapshot",
]

"""Clients of the inference service: :class:`IWMClient` (async) and :class:`SyncIWMClient`.

Every call is a pure function of its request, so a lost connection or a 503 is retried with
back-off; an answer that says the request is wrong is not.
"""

from iwm.client.asynchronous import IWMClient
from iwm.client.calls import Earlier, png_of
from iwm.client.connection import Refused
from iwm.client.results import (
    Candidate,
    DreamResult,
    DualResult,
    EncodeResult,
    Heard,
    ImagineResult,
    IntentionResult,
    ModelCard,
    PlanResult,
    PredictResult,
    ReconstructResult,
    RolloutResult,
    SurpriseResult,
)
from iwm.client.synchronous import SyncIWMClient

__all__ = [
    "Candidate",
    "DreamResult",
    "DualResult",
    "Earlier",
    "EncodeResult",
    "Heard",
    "IWMClient",
    "ImagineResult",
    "IntentionResult",
    "ModelCard",
    "PlanResult",
    "PredictResult",
    "ReconstructResult",
    "Refused",
    "RolloutResult",
    "SurpriseResult",
    "SyncIWMClient",
    "png_of",
]

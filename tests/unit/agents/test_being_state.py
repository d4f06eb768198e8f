from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from iwm.agents import BeingState, vision_snapshot

KEYS = {"has_core_latent", "prediction_surprise", "mrr", "abstraction_index", "core_age"}
numbers = st.floats(allow_nan=True, allow_infinity=True)


@given(
    surprise=numbers, mrr=numbers, index=numbers, seen=numbers, now=numbers, latent=st.booleans()
)
def test_a_snapshot_is_json_whatever_the_state_holds(
    surprise: float, mrr: float, index: float, seen: float, now: float, latent: bool
) -> None:
    state = SimpleNamespace(
        vision_core_latent=np.zeros(3, np.float32) if latent else None,
        vision_core_latent_prev=None,
        vision_core_timestamp=seen,
        vision_prediction_surprise=np.float32(surprise) if abs(surprise) < 1e30 else surprise,
        vision_mrr=mrr,
        vision_abstraction_index=index,
        vision_semantic=None,
        vision_equivariant=None,
    )
    found = vision_snapshot(state, now)
    assert set(found) == KEYS
    assert found["has_core_latent"] is latent
    assert found["core_age"] is None or (latent and found["core_age"] >= 0)
    json.dumps(found, allow_nan=False)


def test_a_fresh_state_has_seen_nothing() -> None:
    found = BeingState().export_snapshot()["vision_world_model"]
    assert found == {
        "has_core_latent": False,
        "prediction_surprise": 0.0,
        "mrr": 0.0,
        "abstraction_index": 0.0,
        "core_age": None,
    }

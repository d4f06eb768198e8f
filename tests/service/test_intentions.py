"""/imagine and /intention of a real service."""

from __future__ import annotations

from tinyembodied import HORIZON, STATE, starts

from iwm.client import SyncIWMClient
from pipelines._served import Served


def test_two_agents_hear_each_other(whole: Served) -> None:
    with SyncIWMClient(whole.url) as client:
        ahead = client.imagine(starts(1)[0])
        assert ahead.states.shape == (HORIZON, STATE)
        said = client.intention(
            "red", 0, room="duel", trajectory=ahead.states, goal="flag", confidence=0.8
        )
        assert said.size <= 49
        (heard,) = client.intention("blue", 0, room="duel", text='{"g":2}').others
        assert (heard.agent, heard.text, heard.goal) == ("red", said.intention, "flag")
        assert heard.plan is not None
        assert heard.plan.shape == (HORIZON, STATE)

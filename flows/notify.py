"""The notification hook: how a flow run ended, as JSON to a web address of yours.

``IWM_NOTIFY_URL`` names it (a chat's or pager's incoming webhook); it is a secret and never
logged. ``IWM_NOTIFY_ON`` says when: ``failure`` (the default) or ``always``. A webhook that
does not answer never changes how a run ended.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any

from flows import observe

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun, State
    from prefect.flows import Flow

URL, WHEN = "IWM_NOTIFY_URL", "IWM_NOTIFY_ON"
ATTEMPTS = 3
PATIENCE_S = 5.0

log = logging.getLogger(__name__)


def message(flow: str, run: str, state: str, why: str | None) -> dict[str, Any]:
    """What is sent. ``text`` is what Slack, Mattermost and the like show."""
    text = f"{flow} ({run}): {state}"
    return {
        "text": f"{text}. {why}" if why else text,
        "flow": flow,
        "run": run,
        "state": state,
        "message": why,
    }


def send(body: dict[str, Any]) -> bool:
    """Post ``body`` to the address in the environment; whether it was taken."""
    url = os.environ.get(URL)
    if not url:
        return False
    import httpx
    from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_exponential

    try:
        for attempt in Retrying(
            stop=stop_after_attempt(ATTEMPTS),
            wait=wait_exponential(multiplier=0.5, max=4),
            retry=retry_if_exception_type(httpx.HTTPError),
            reraise=True,
        ):
            with attempt:
                httpx.post(url, json=body, timeout=PATIENCE_S).raise_for_status()
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        # The error's own text holds the address.
        log.warning("%s: the notification was not taken (%s)", URL, type(error).__name__)
        return False
    return True


def ended(flow: Flow[..., Any], run: FlowRun, state: State[Any]) -> None:
    """Hook of every flow, called when a run is over."""
    if state.is_completed() and os.environ.get(WHEN, "failure") != "always":
        return
    send(message(flow.name, run.name, state.name or "", state.message))


HOOKS: dict[str, Any] = {
    "on_running": [observe.began],
    "on_completion": [observe.counted, ended],
    "on_failure": [observe.counted, ended],
    "on_crashed": [observe.counted, ended],
    "on_cancellation": [observe.counted, ended],
}
"""For ``@flow(..., **HOOKS)``."""

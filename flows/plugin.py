"""Prefect plugin: a deployment named as its flow may be called by that one name.

``prefect deployment run train-iwm`` is refused by Prefect's client, which splits names at
``/``. This plugin, named in the entry-point group ``prefect.plugins`` and switched on by
prefect.toml, reads ``x`` as ``x/x``; ``x/y`` stays what it is.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from prefect.plugins import HookContext, register_hook


def full_name(name: str) -> str:
    """``flow/deployment``; a single name stands for both."""
    return name if "/" in name else f"{name}/{name}"


def _accept_one_name(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def read_deployment_by_name(self: Any, name: str) -> Any:
        return method(self, full_name(name))

    read_deployment_by_name.accepts_one_name = True  # type: ignore[attr-defined]
    return read_deployment_by_name


@register_hook
def setup_environment(*, ctx: HookContext) -> None:
    """Wrap the clients' ``read_deployment_by_name``; called when Prefect is imported."""
    del ctx
    from prefect.client.orchestration import PrefectClient, SyncPrefectClient

    for client in (PrefectClient, SyncPrefectClient):
        method = client.read_deployment_by_name
        if not hasattr(method, "accepts_one_name"):
            client.read_deployment_by_name = _accept_one_name(method)  # type: ignore[method-assign]

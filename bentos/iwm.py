"""The BentoML service ``iwm``: our HTTP application, served by BentoML's workers.

BentoML brings the process model, the store and the probes; routes, bounds,
errors and batching are :mod:`iwm.serving`'s. Its ``batchable`` methods are not used: under
a mounted application they are reached through an in-process HTTP client that writes every
frame as JSON, and they would be public routes of their own, past all bounds.
"""

from __future__ import annotations

import dataclasses
import gc
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, cast

import bentoml

from bentos import ENVIRONMENT
from iwm import logs
from iwm.errors import ConfigError
from iwm.serving.app import create_app
from iwm.serving.config import ServiceConfig, service_config
from iwm.serving.connections import install
from iwm.serving.direct import Direct
from iwm.serving.limits import TokenMiddleware

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

    from iwm.serving.following import Follower

# A Bento carries its model beside this package; a checkout does not.
_CARRIED = Path(__file__).resolve().parent.parent / "model"


def _configuration() -> ServiceConfig:
    config = service_config()
    if config.model_path is None and _CARRIED.is_dir():
        return dataclasses.replace(config, model_path=_CARRIED)
    return config


logs.configure("service")
_config = _configuration()
_app = create_app(_config)


def _shortcut(app: ASGIApp) -> ASGIApp:
    """The calls, before BentoML's layers, which cost more than a small model; others pass."""
    direct = Direct(app, _app.state.endpoints)
    return TokenMiddleware(direct, _config.token) if _config.token else direct


# Pages of other origins need headers that only the application writes.
install(*([] if _config.cors_origins else [_shortcut]))


def _follower() -> Follower | None:
    """What lets a newer champion take over, where it was asked for."""
    if not _config.registry_poll_s:
        return None
    from iwm.serving.following import Follower
    from pipelines._champion import fetch_moved

    follower = Follower(_app.state.runtime, fetch_moved, _config.registry_poll_s)
    follower.start()
    return follower


async def _mounted(scope: Scope, receive: Receive, send: Send) -> None:
    """The application behind a plain callable: BentoML then sends it every path that is not
    its own, so that an unknown path, too, is answered in our one error shape.
    """
    await _app(scope, receive, send)


@bentoml.service(
    name="iwm",
    workers=1,
    # The timer of every request lives this long after it; ours (Limits) ends sooner.
    traffic={"timeout": 5},
    http={"host": _config.host, "port": _config.port},
    # BentoML's own label every path that anyone asks for, without bound; ours do not.
    metrics={"enabled": False},
    logging={"access": {"enabled": False}},
    # Nobody collects traces; asking each request whether to trace it takes longer than /predict.
    tracing={"excluded_urls": "."},
    envs=[{"name": name, "value": value} for name, value in ENVIRONMENT.items()],
)
@bentoml.asgi_app(_mounted, path="/")
class IWM:
    """An image world model: POST /encode, /encode_dual, /predict, /rollout, /plan, /surprise;
    GET /health, /model, /metrics, and a page at /.
    """

    def __init__(self) -> None:
        self.runtime = _app.state.runtime
        self.runtime.load()
        self.follower = _follower()
        # Weights and modules never become garbage: the collector need not visit them.
        gc.collect()
        gc.freeze()

    @bentoml.on_deployment  # type: ignore[untyped-decorator]
    @staticmethod
    def check() -> None:
        """Refuse once, before any worker starts, what cannot be: a device, following."""
        if _config.registry_poll_s and find_spec("mlflow") is None:
            raise ConfigError(
                "IWM_REGISTRY_POLL_S: following the registry needs mlflow, which is not installed"
            )
        if _config.device not in ("auto", "cpu"):
            from iwm.serving.device import choose_device

            choose_device(_config.device)

    @bentoml.on_shutdown  # type: ignore[untyped-decorator]
    def close(self) -> None:
        """Stop the threads."""
        if self.follower:
            self.follower.stop()
        self.runtime.close()


_service = cast("bentoml.Service[IWM]", IWM)
if _config.token:
    _service.add_asgi_middleware(TokenMiddleware, token=_config.token)

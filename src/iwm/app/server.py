"""The application behind `iwm play`: Gradio's page, our play tab, nothing from elsewhere."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from starlette.datastructures import MutableHeaders
from starlette.responses import FileResponse, PlainTextResponse, Response

from iwm.serving.dreaming import MAX_SESSIONS, Codec, Dreamer

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from iwm.app.starts import HeldOut

# Read by Gradio and by what it imports, before they are imported.
QUIET = {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
}
MAX_UPLOAD = 16 * 1024 * 1024
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; media-src 'self' blob:; "
    "font-src 'self' data:; connect-src 'self'; worker-src 'self' blob:; object-src 'none'; "
    "frame-ancestors 'self'"
)
"""A browser refuses whatever the page would load or send elsewhere."""


@dataclass(frozen=True)
class Shown:
    """What the page is about.

    ``dreamer`` may be missing (then there is no play tab), ``held_out`` too (then pictures must
    be brought along).
    """

    codec: Codec
    dreamer: Dreamer | None
    held_out: HeldOut | None
    pictures: Path
    """Where the evaluation wrote its pictures: ``<pictures>/vqvae*/*.png``."""
    sessions: int = MAX_SESSIONS


def create_app(shown: Shown) -> FastAPI:
    """The application."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    import gradio

    from iwm.app import blocks
    from iwm.app.gallery import find
    from iwm.app.live import Play, router
    from iwm.serving.dreaming import Sessions

    app = FastAPI(title="iwm play", docs_url=None, redoc_url=None, openapi_url=None)
    if shown.dreamer is not None and shown.held_out is not None:
        sessions = Sessions(shown.dreamer, shown.sessions)
        app.include_router(router(Play(sessions, shown.held_out)))

    @app.get("/pictures/{phase}/{name}")
    def picture(phase: str, name: str) -> Response:
        # Only what the gallery lists: no path comes from the address.
        for path in find(shown.pictures):
            if (path.parent.name, path.name) == (phase, name):
                return FileResponse(path)
        return PlainTextResponse("no such picture", 404)

    app.add_middleware(_Closed)
    mounted: FastAPI = gradio.mount_gradio_app(
        app,
        blocks.build(shown),
        path="/",
        footer_links=[],
        run_history=False,
        show_error=True,
        max_file_size=MAX_UPLOAD,
        ssr_mode=False,
        pwa=False,
        theme=blocks.theme(),
        css=blocks.style(),
    )
    return mounted


class _Closed:
    """Adds the headers that keep the page to itself."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def closed(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["Content-Security-Policy"] = POLICY
                headers["Referrer-Policy"] = "no-referrer"
                headers["X-Content-Type-Options"] = "nosniff"
            await send(message)

        await self._app(scope, receive, closed)


def facts(shown: Shown) -> dict[str, Any]:
    """What the play tab's script knows of the model."""
    from iwm.app.keys import bindings, label

    assert shown.dreamer is not None
    assert shown.held_out is not None
    height, width = shown.codec.size
    keys = bindings(shown.dreamer.vocabulary, shown.dreamer.idle)
    return {
        "width": width,
        "height": height,
        "idle": shown.dreamer.idle,
        "starts": len(shown.held_out),
        "actions": [
            {"action": action, "keys": codes, "label": " ".join(label(code) for code in codes)}
            for action, codes in keys.items()
        ],
    }

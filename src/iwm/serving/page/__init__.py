"""The status page at ``/``: one file, nothing loaded from elsewhere.

It shows the model's card, the service's latencies as they come, and what the model makes of an
image: the frames of its bank that look most alike to it, and where it thinks an action leads.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from fastapi import APIRouter
from starlette.responses import HTMLResponse, Response

from iwm.serving import wire
from iwm.serving.page.bank import read_bank

if TYPE_CHECKING:
    from iwm.serving.engine import Engine
    from iwm.serving.runtime import Runtime


def _source(kind: str, text: str) -> str:
    """A policy's source that allows exactly the inline blocks of the page."""
    blocks = re.findall(rf"<{kind}>(.*?)</{kind}>", text, re.DOTALL)
    digests = (hashlib.sha256(block.encode()).digest() for block in blocks)
    return " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)


@cache
def _page() -> tuple[str, dict[str, str]]:
    text = (Path(__file__).parent / "index.html").read_text(encoding="utf-8")
    policy = (
        f"default-src 'none'; script-src {_source('script', text)}; "
        f"style-src {_source('style', text)}; img-src data: blob:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return text, {
        "Content-Security-Policy": policy,
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
        "Cache-Control": "no-cache",
    }


def router(runtime: Runtime) -> APIRouter:
    """The routes ``GET /`` and ``GET /bank``, which the page alone uses.

    ``/bank`` raises ``RequestError`` 503 without a model, as ``/model`` does.
    """
    routes = APIRouter(include_in_schema=False)
    banks: WeakKeyDictionary[Engine, dict[str, Any]] = WeakKeyDictionary()

    @routes.get("/")
    async def page() -> Response:
        text, headers = _page()
        return HTMLResponse(text, headers=headers)

    @routes.get("/bank")
    async def bank() -> Response:
        engine = runtime.ready().main
        if engine not in banks:  # reading hashes the weights, so once for each model
            banks[engine] = await asyncio.to_thread(read_bank, engine.folder, engine.latent_dim)
        return Response(wire.dumps(banks[engine]), media_type="application/json")

    return routes

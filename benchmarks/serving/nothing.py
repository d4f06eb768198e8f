"""HTTP alone: what uvicorn answers when nothing is computed, on the same cores as its clients.

    python -m benchmarks.serving.nothing MODEL_FOLDER PORT

No service on these cores, whatever it does between request and answer, answers these clients more
often. The body is read and not looked at; the answer is a prepared latent of the model's width.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import orjson
import uvicorn

from iwm.files import read_json

if TYPE_CHECKING:
    from uvicorn._types import ASGI3Application, ASGIReceiveCallable, ASGISendCallable, Scope


def application(folder: Path) -> ASGI3Application:
    """The application; the folder tells only how long a latent is."""
    width = read_json(folder / "config.json")["settings"]["encoder"]["width"]
    body = orjson.dumps({"z": np.linspace(-1, 1, width, dtype=np.float32).tolist()})
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
    ]

    async def answer(scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        if scope["type"] != "http":
            return
        while (await receive()).get("more_body"):
            pass
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    return answer


if __name__ == "__main__":
    uvicorn.run(
        application(Path(sys.argv[1])),
        host="127.0.0.1",
        port=int(sys.argv[2]),
        log_level="error",
        access_log=False,
        lifespan="off",
    )

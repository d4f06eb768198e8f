"""The wire of the play tab: actions in, frames out, one dream a visitor.

A WebSocket at ``live``. The client sends ``{"do": "reset", "place": 7, "seed": 0}`` (``place``
may be ``null``: any) or ``{"do": "step", "action": "turn_left"}`` and waits for the answer: to a
reset first a JSON text with the start's caption and the actions that led to it, then, as to a
step, a PNG as a binary message. A refusal is a JSON text ``{"error": ...}``.
"""

from __future__ import annotations

import asyncio
import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Annotated, Literal, Protocol
from urllib.parse import urlsplit

from fastapi import APIRouter
from pydantic import BaseModel, Field, StrictInt, TypeAdapter, ValidationError
from starlette.websockets import WebSocket, WebSocketDisconnect

from iwm.errors import IwmError, ServiceError
from iwm.serving.dreaming import Session, Sessions, Start
from iwm.serving.imagery import png_of

IDLE_S = 120.0
MAX_MESSAGE = 4096
_POLICY, _TRY_LATER, _ASLEEP = 1008, 1013, 1001


class Starts(Protocol):
    """Where dreams may begin; see :class:`iwm.app.starts.HeldOut`."""

    def __len__(self) -> int: ...

    def start(self, place: int) -> Start:
        """A start by number, counted round."""
        ...


class Reset(BaseModel):
    """Begin anew."""

    do: Literal["reset"]
    place: StrictInt | None = None
    seed: Annotated[StrictInt, Field(ge=0, lt=2**63)] = 0


class Step(BaseModel):
    """Act."""

    do: Literal["step"]
    action: str


_MESSAGES: TypeAdapter[Reset | Step] = TypeAdapter(
    Annotated[Reset | Step, Field(discriminator="do")]
)


@dataclass(frozen=True)
class Play:
    """What visitors share.

    ``idle_s``: a session without a message for so long ends, and its place is free.
    """

    sessions: Sessions
    starts: Starts
    idle_s: float = IDLE_S


def router(play: Play) -> APIRouter:
    """The route ``/live``. One thread computes for all visitors, in turn."""
    routes = APIRouter()
    thread = ThreadPoolExecutor(1, thread_name_prefix="iwm-play")

    @routes.websocket("/live")
    async def live(socket: WebSocket) -> None:
        if not own_page(socket):
            await socket.close(_POLICY)
            return
        await socket.accept()
        try:
            with play.sessions.place() as session:
                await _serve(socket, play, session, thread)
        except ServiceError as error:
            await socket.send_json({"error": str(error)})
            await socket.close(_TRY_LATER)
        except WebSocketDisconnect:
            pass

    return routes


def own_page(socket: WebSocket) -> bool:
    """Whether a page of this server asks; a page from elsewhere must not play here unseen."""
    origin = socket.headers.get("origin")
    return origin is None or urlsplit(origin).netloc == socket.headers.get("host")


async def _serve(
    socket: WebSocket, play: Play, session: Session, thread: ThreadPoolExecutor
) -> None:
    loop = asyncio.get_running_loop()
    while True:
        try:
            async with asyncio.timeout(play.idle_s):
                text = await socket.receive_text()
        except TimeoutError:
            line = f"asleep: nothing was done for {play.idle_s:g} s; press New start to go on"
            await socket.send_json({"error": line})
            await socket.close(_ASLEEP)
            return
        try:
            message = _MESSAGES.validate_json(text)
            if isinstance(message, Step):
                png = await loop.run_in_executor(thread, _step, session, message.action)
            else:
                start, png = await loop.run_in_executor(thread, _reset, play, session, message)
                said = {"caption": start.caption, "past": list(start.actions or ())}
                await socket.send_json({"started": said})
        except ValidationError as error:
            item = error.errors()[0]
            field = ".".join(str(part) for part in item["loc"]) or "message"
            await socket.send_json({"error": f"{field}: {item['msg']}"})
        except IwmError as error:
            await socket.send_json({"error": str(error)})
        else:
            await socket.send_bytes(png)


def _step(session: Session, action: str) -> bytes:
    return png_of(session.step(action))


def _reset(play: Play, session: Session, message: Reset) -> tuple[Start, bytes]:
    place = random.randrange(len(play.starts)) if message.place is None else message.place
    start = play.starts.start(place)
    return start, png_of(session.reset(start, message.seed))

"""What leaves a connection: an answer in one piece, nothing lost, nothing out of order."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from uvicorn import config

from iwm.serving import connections
from iwm.serving.connections import BoundedProtocol, Joining


class Wire:
    """A transport that remembers what it was given."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.closed = False

    def write(self, data: bytes) -> None:
        self.sent.append(data)

    def writelines(self, pieces: tuple[bytes, ...]) -> None:
        self.sent.append(b"".join(pieces))

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    def get_extra_info(self, name: str) -> str:
        return f"the wire's {name}"


def joining(wire: Wire) -> Joining:
    return Joining(cast("Any", wire), asyncio.get_running_loop())


@pytest.mark.parametrize("size", [10, 1_000_000])
def test_a_head_goes_with_its_body(size: int) -> None:
    async def scenario() -> None:
        wire = Wire()
        transport = joining(wire)
        transport.write(b"head")
        assert wire.sent == []
        transport.write(b"b" * size)
        assert wire.sent == [b"head" + b"b" * size]
        await asyncio.sleep(0)
        assert len(wire.sent) == 1
        assert transport.get_extra_info("peer") == "the wire's peer"

    asyncio.run(scenario())


def test_a_head_whose_body_has_not_come_goes_alone() -> None:
    async def scenario() -> None:
        wire = Wire()
        joining(wire).write(b"head")
        await asyncio.sleep(0)
        assert wire.sent == [b"head"]

    asyncio.run(scenario())


def test_what_is_held_is_sent_before_the_end_and_not_after_it() -> None:
    async def scenario() -> None:
        wire, lost = Wire(), Wire()
        transport = joining(wire)
        transport.write(b"head")
        transport.close()
        assert (wire.sent, wire.closed) == ([b"head"], True)
        joining(lost).write(b"head")
        lost.closed = True  # the client went
        await asyncio.sleep(0)
        assert lost.sent == []

    asyncio.run(scenario())


@given(st.lists(st.one_of(st.none(), st.binary(min_size=1, max_size=9)), max_size=20))
def test_everything_leaves_in_order(pieces: list[bytes | None]) -> None:
    """``None``: the loop turns."""

    async def scenario() -> None:
        wire = Wire()
        transport = joining(wire)
        for piece in pieces:
            if piece is None:
                await asyncio.sleep(0)
            else:
                transport.write(piece)
        transport.close()
        assert b"".join(wire.sent) == b"".join(piece for piece in pieces if piece)

    asyncio.run(scenario())


def test_layers_lie_around_what_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BoundedProtocol, "around", [])
    monkeypatch.setitem(config.HTTP_PROTOCOLS, "auto", config.HTTP_PROTOCOLS["auto"])

    async def served(scope: Any, receive: Any, send: Any) -> None:
        """The application."""

    connections.install(lambda app: ["inner", app], lambda app: ["outer", app])  # type: ignore[arg-type, return-value]
    settings = config.Config(served, log_level="critical", interface="asgi3", proxy_headers=False)
    settings.load()
    assert settings.http_protocol_class is BoundedProtocol

    async def scenario() -> Any:
        from uvicorn.server import ServerState

        return BoundedProtocol(settings, ServerState(), {}).app

    assert asyncio.run(scenario()) == ["outer", ["inner", settings.loaded_app]]

"""One connection of the Unix socket between server and engine: bytes in, frames out, and back."""

from __future__ import annotations

import asyncio
from typing import Protocol, cast

import structlog

from specproxy.errors import WireError
from specproxy.wire.frames import FrameReader, ToEngine, ToServer, encode


class LinkOwner(Protocol):
    """What a link reports to. All calls come from the event loop."""

    def on_frame(self, link: EngineLink, frame: ToServer) -> None:
        """A whole frame arrived."""
        ...

    def on_lost(self, link: EngineLink) -> None:
        """The connection is gone; nothing more will arrive."""
        ...


class EngineLink(asyncio.Protocol):
    """Frames over one connection. A peer that breaks the protocol is cut off: its memory of what we said is void."""

    def __init__(self, owner: LinkOwner) -> None:
        self._owner = owner
        self._reader: FrameReader[ToServer] = FrameReader(ToServer)
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The engine connected."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Cut the bytes into frames and hand them on."""
        try:
            for frame in self._reader.feed(data):
                self._owner.on_frame(self, frame)
        except WireError as error:
            structlog.get_logger().error("engine broke the protocol", error=str(error))
            self.cut()

    def connection_lost(self, exc: Exception | None) -> None:
        """The engine closed the connection, or died."""
        self._transport = None
        self._owner.on_lost(self)

    def send(self, frame: ToEngine) -> None:
        """Queue a frame; a lost link swallows it, as its owner resubmits what matters."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(encode(frame))

    def cut(self) -> None:
        """Drop the connection now."""
        if self._transport is not None:
            self._transport.abort()

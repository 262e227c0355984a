"""An upstream's answer as it comes: whole events of a stream, pieces of anything else, the bytes as they were sent."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import aiohttp

from specproxy.upstream.errors import Kind, UpstreamError
from specproxy.upstream.events import EventCutter, StreamWatch, decoded
from specproxy.upstream.headers import response_headers

HOLD_BYTES = 2**18
"""Of an answer that is no stream so much is awaited before its first byte goes on, and mostly that is all of it: until
then another backend can still answer."""

EVENTS = "text/event-stream"

_AFTER_DONE_S = 0.5
"""How long the end of a body may come behind its [DONE]."""


class Answer:
    """An answer with a good status, or an error that is the client's. ``first``: what is there when it is opened;
    ``complete``: nothing follows it. ``on_end`` hears once how it ended: ``None`` is well."""

    def __init__(
        self,
        upstream: str,
        response: aiohttp.ClientResponse,
        idle_s: float,
        on_end: Callable[[Answer, Kind | None], None],
        *,
        generates: bool,
    ) -> None:
        self.upstream = upstream
        self.status = response.status
        self.headers = response_headers(response.headers)
        self.length = response.content_length
        self.first = b""
        self.complete = False
        readable = response.headers.get("Content-Encoding", "identity") == "identity"
        self.watch = StreamWatch() if readable and response.content_type == EVENTS else None
        self._response = response
        self._idle_s = idle_s
        self._on_end = on_end
        self._generates = generates
        self._cutter = EventCutter()

    async def open(self) -> None:
        """Wait for what goes out first: a whole event, or the beginning of another body. The caller has the clock.
        Raises aiohttp's errors, UpstreamError where a stream ends before its first event."""
        if self.watch is not None:
            self.first = await self._events(self.watch)
            return
        pieces, size = [], 0
        while size < HOLD_BYTES and (data := await self._response.content.readany()):
            pieces.append(data)
            size += len(data)
        self.first = b"".join(pieces)
        if size < HOLD_BYTES:
            self._finish(None)

    async def read(self) -> bytes:
        """What comes next; the last, where ``complete`` is true then. Raises UpstreamError where it does not go on."""
        try:
            async with asyncio.timeout(self._idle_s):
                if self.watch is not None:
                    return await self._events(self.watch)
                data = await self._response.content.readany()
        except UpstreamError as error:
            self._on_end(self, error.kind)
            raise
        except TimeoutError:
            raise self._broken(
                "timeout_idle", f"nothing came for {self._idle_s:g} s in the middle of its answer"
            ) from None
        except (aiohttp.ClientError, OSError) as error:
            raise self._broken("lost", f"the connection was lost in the middle of its answer ({error})") from None
        if not data:
            self._finish(None)
        return data

    def last_words(self) -> dict[str, Any]:
        """The object that an answer is, or the keys of a stream's last events, as far as either was kept."""
        if self.watch is not None:
            return self.watch.last_words()
        return decoded(self.first) if self.complete else {}

    def close(self) -> None:
        """Let go of the connection, which is used again only where the answer was read to its end."""
        if self.complete:
            self._response.release()
        else:
            self._response.close()

    async def _events(self, watch: StreamWatch) -> bytes:
        """The next whole events. The last ones come with the end of the body, so that a client which leaves when it has
        them leaves nothing undone; where the answer is not whole then, UpstreamError."""
        while data := await self._response.content.readany():
            if events := self._cutter.feed(data):
                watch.see(events)
                return events + await self._after(watch) if watch.done else events
        rest = self._cutter.rest()
        watch.see(rest)
        if self._generates and not watch.whole:
            raise UpstreamError(self.upstream, "lost", "its stream ended in the middle of the answer")
        self._finish("stream_error" if watch.failed else None)
        return rest

    async def _after(self, watch: StreamWatch) -> bytes:
        """What follows [DONE]: nothing but the end of the body, which some servers leave out."""
        pieces = [self._cutter.rest()]
        try:
            async with asyncio.timeout(_AFTER_DONE_S):
                while data := await self._response.content.readany():
                    pieces.append(data)
        except (TimeoutError, aiohttp.ClientError, OSError):
            pass  # The answer is whole: how its connection ends is no matter.
        self._finish("stream_error" if watch.failed else None)
        return b"".join(pieces)

    def _broken(self, kind: Kind, message: str) -> UpstreamError:
        self._on_end(self, kind)
        return UpstreamError(self.upstream, kind, message)

    def _finish(self, kind: Kind | None) -> None:
        self.complete = True
        self._on_end(self, kind)

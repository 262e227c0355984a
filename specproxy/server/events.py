"""A server-sent-events response that commits to status 200 as late as it can, and never ends a failure cleanly."""

from __future__ import annotations

import asyncio

from aiohttp import web

KEEP_ALIVE = b": keep-alive\n\n"
"""A comment line: the only keep-alive that every client ignores (no ``id:``, no ``retry:``, no named event)."""

_FLUSH_S = 5.0
"""How long a broken stream may take to hand over its last words before the connection is dropped."""


class EventStream:
    """SSE over a request's connection. Headers leave with the first write, so that until then an error can still be
    an HTTP error."""

    def __init__(self, request: web.Request) -> None:
        self._request = request
        self.response: web.StreamResponse | None = None

    async def write(self, data: bytes) -> None:
        """Send events; waits while the client reads more slowly than we write."""
        response = self.response or await self._open()
        await response.write(data)

    async def end(self, data: bytes) -> web.StreamResponse:
        """Send the last events and end the body."""
        response = self.response or await self._open()
        await response.write_eof(data)
        return response

    async def break_off(self, event: bytes) -> web.StreamResponse:
        """Send an error event and cut the connection, so that no client takes what it got for the whole answer."""
        response = self.response or await self._open()
        response.force_close()
        try:
            async with asyncio.timeout(_FLUSH_S):
                await response.write(event)
        except TimeoutError:
            pass  # The client has stopped reading; the event is in the buffer, where it may stay.
        transport = self._request.transport
        if transport is not None:
            transport.close()
            asyncio.get_running_loop().call_later(_FLUSH_S, transport.abort)
        return response

    async def _open(self) -> web.StreamResponse:
        response = web.StreamResponse()
        response.headers["Content-Type"] = "text/event-stream; charset=utf-8"
        response.headers["Cache-Control"] = "no-cache"
        response.headers["X-Accel-Buffering"] = "no"
        await response.prepare(self._request)
        self.response = response
        return response

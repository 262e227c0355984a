"""``GET /admin/v1/events``: the status whenever it has changed, and every new entry of the audit log, as they come.

The key travels in a header, as everywhere: a page reads this with ``fetch``, since EventSource would need it in a URL.
"""

from __future__ import annotations

import asyncio
import contextlib

import msgspec
import structlog
from aiohttp import web
from msgspec import Struct

from specproxy.errors import QueueFull, RequestError
from specproxy.server.admin.api import MAX_LOG, number
from specproxy.server.admin.operator import Operator
from specproxy.server.api import error_event
from specproxy.server.events import EventStream
from specproxy.server.faults import unexpected
from specproxy.server.state import REQUEST_ID

MAX_STREAMS = 16
"""Open pages. Each costs a status every EVERY_S seconds."""

EVERY_S = 2.0
"""Counters move all the time: without news the status is sent so often, which also keeps the connection alive."""

LEAST_GAP_S = 0.1
"""News that come faster than this are sent as one."""


class Events:
    """The open streams."""

    def __init__(self, operator: Operator) -> None:
        self._operator = operator
        self._open: set[asyncio.Event] = set()
        self._closing = False

    @property
    def num_open(self) -> int:
        """How many there are."""
        return len(self._open)

    def close(self) -> None:
        """End every stream."""
        self._closing = True
        for news in self._open:
            news.set()

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """Events ``status`` (a Status) and ``log`` (a Log, of entries above ``after``) until either side goes away."""
        after = number(request, "after", -1, 0)
        if len(self._open) >= MAX_STREAMS:
            raise QueueFull(f"{MAX_STREAMS} event streams are open already", retry_after_s=EVERY_S)
        news = asyncio.Event()
        self._open.add(news)
        listening = asyncio.create_task(self._listen(news))
        try:
            return await self._follow(request, news, after)
        finally:
            self._open.discard(news)
            listening.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await listening

    async def _follow(self, request: web.Request, news: asyncio.Event, after: int) -> web.StreamResponse:
        stream = EventStream(request)
        try:
            while not self._closing:
                news.clear()
                status = await self._operator.status()
                data = _event("status", status)
                after = status.log if after < 0 else after
                while after < status.log and (log := await self._operator.log(after, MAX_LOG)).entries:
                    data += _event("log", log)
                    after = log.entries[-1].seq
                await stream.write(data)
                await asyncio.sleep(LEAST_GAP_S)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(news.wait(), EVERY_S)
            return await stream.end(b"")
        except ConnectionError:
            raise
        except Exception as raised:
            if stream.response is None:
                raise
            error = raised if isinstance(raised, RequestError) else unexpected(raised, request[REQUEST_ID])
            return await stream.break_off(error_event(error.info()))

    async def _listen(self, news: asyncio.Event) -> None:
        try:
            async with contextlib.aclosing(self._operator.changes()) as changes:
                async for _ in changes:
                    news.set()
        except Exception:  # noqa: BLE001 - without news the stream still tells the status every EVERY_S seconds
            structlog.get_logger().exception("news of the gate have ended")


def _event(kind: str, value: Struct) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (kind.encode(), msgspec.json.encode(value))

"""A server on a port of its own that answers as its scripts say, well or badly, and remembers what it was asked."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field

from aiohttp import web

Script = Callable[[web.Request], Awaitable[web.StreamResponse]]


def event(text: str, *, model: str = "theirs", finish: str | None = None) -> bytes:
    """One chunk, spaced as no encoder of ours would."""
    reason = f'"{finish}"' if finish else "null"
    return (
        f'data: {{"id": "c-1",  "object":"chat.completion.chunk","created":1,"model":"{model}", "choices":[{{"index":0,'
        f'"delta":{{"role":"assistant","content":"{text}"}},"finish_reason":{reason}}}]}}\n\n'
    ).encode()


USAGE = b'data: {"id":"c-1","object":"chat.completion.chunk","created":1,"model":"theirs","choices":[],"usage":{"prompt_tokens":11,"completion_tokens":3,"total_tokens":14}}\r\n\r\n'  # noqa: E501
DONE = b"data: [DONE]\n\n"
GOOD = b": hello\n\n" + event("na\\u00efve ✓") + event("b") + event("", finish="stop") + USAGE + DONE
"""A whole stream: a comment, two ways to write a character, both line ends."""

WHOLE = b'{"id":"c-1","object":"chat.completion","created":1,"model":"theirs",  "choices":[{"index":0,"message":{"role":"assistant","content":"hi"},"finish_reason":"stop"}],"usage":{"prompt_tokens":11,"completion_tokens":3,"total_tokens":14}}\n'  # noqa: E501


@dataclass
class Seen:
    """A request that came."""

    path: str
    method: str
    headers: dict[str, str]
    body: bytes


@dataclass
class ScriptedServer:
    """``http://127.0.0.1:port/NAME/v1/…`` is answered by the script of that name. ``seen``, ``left``: requests that
    came, and those whose client left, by name."""

    scripts: dict[str, Script] = field(default_factory=dict)
    seen: dict[str, list[Seen]] = field(default_factory=lambda: defaultdict(list))
    left: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    health: dict[str, int] = field(default_factory=dict)
    port: int = 0

    def url(self, name: str) -> str:
        """The base URL of a script."""
        return f"http://127.0.0.1:{self.port}/{name}/v1"

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """Any request."""
        name, rest = request.match_info["name"], request.match_info["rest"]
        if rest == "health":
            return web.Response(status=self.health.get(name, 200))
        self.seen[name].append(Seen(request.raw_path, request.method, dict(request.headers), await request.read()))
        try:
            return await self.scripts[name](request)
        except asyncio.CancelledError:
            self.left[name] += 1
            raise


@contextlib.contextmanager
def serving(server: ScriptedServer) -> Iterator[ScriptedServer]:
    """Run ``server`` in a thread of its own."""
    loop = asyncio.new_event_loop()
    started = threading.Event()

    async def main() -> None:
        app = web.Application()
        app.router.add_route("*", "/{name}/{rest:.*}", server.answer)
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        server.port = site._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]
        started.set()
        await stop.wait()
        await runner.cleanup()

    stop = asyncio.Event()
    thread = threading.Thread(target=loop.run_until_complete, args=(main(),))
    thread.start()
    started.wait(10)
    try:
        yield server
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        loop.close()


async def stream_of(request: web.Request, *pieces: bytes | float, **headers: str) -> web.StreamResponse:
    """A stream of ``pieces``; numbers are pauses, in seconds."""
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream", **headers})
    await response.prepare(request)
    for piece in pieces:
        if isinstance(piece, float):
            await asyncio.sleep(piece)
        else:
            await response.write(piece)
    return response


def cut(request: web.Request) -> None:
    """Drop the connection."""
    if request.transport is not None:
        request.transport.abort()


async def good(request: web.Request) -> web.StreamResponse:
    """A whole answer, streamed in pieces that end anywhere, or at once."""
    headers = {"x-request-id": "theirs-1", "Set-Cookie": "a=b", "x-ratelimit-remaining-requests": "7"}
    if b'"stream":true' not in (await request.read()).replace(b" ", b""):
        return web.Response(body=WHOLE, content_type="application/json", headers=headers)
    sizes = range(0, len(GOOD), 50)
    pieces = [piece for start in sizes for piece in (GOOD[start : start + 50], 0.001)]
    return await stream_of(request, *pieces, **headers)


async def dies(request: web.Request) -> web.StreamResponse:
    """Two events, half of a third, and no connection any more."""
    response = await stream_of(request, event("a"), event("b"), event("c")[:40], 0.05)
    cut(request)
    return response


async def ends(request: web.Request) -> web.StreamResponse:
    """A body that ends well in the middle of an answer."""
    return await stream_of(request, event("a"), event("b"))


async def hangs(request: web.Request) -> web.StreamResponse:
    """No answer."""
    await asyncio.sleep(60)
    return web.Response()


async def stalls(request: web.Request) -> web.StreamResponse:
    """Two events, and nothing more."""
    return await stream_of(request, event("a"), event("b"), 60.0)


async def headers_only(request: web.Request) -> web.StreamResponse:
    """Status 200, and then no connection any more: nothing that a client could use has come."""
    response = await stream_of(request, event("a")[:30], 0.02)
    cut(request)
    return response


async def redirects(request: web.Request) -> web.StreamResponse:
    """Elsewhere."""
    return web.Response(status=307, headers={"Location": "http://127.0.0.1:9/v1"})


def fails(status: int, body: bytes, content_type: str = "application/json", **headers: str) -> Script:
    """An error."""

    async def script(request: web.Request) -> web.StreamResponse:
        return web.Response(status=status, body=body, content_type=content_type, headers=headers)

    return script


def says(body: bytes) -> Script:
    """A whole answer of this body."""

    async def script(request: web.Request) -> web.StreamResponse:
        return web.Response(body=body, content_type="application/json")

    return script


class DropsFirst:
    """Closes the connection of every other request, beginning with the first, before anything of an answer."""

    def __init__(self) -> None:
        self.calls = 0

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        """The script."""
        self.calls += 1
        if self.calls % 2:
            cut(request)
            return web.Response()
        return await good(request)


class Crowd:
    """Answers nobody before ``size`` requests are there at a time."""

    def __init__(self, size: int) -> None:
        self._missing = size
        self._all_there = asyncio.Event()

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        """The script."""
        self._missing -= 1
        if self._missing <= 0:
            self._all_there.set()
        await self._all_there.wait()
        return await good(request)

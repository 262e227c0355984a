"""Where requests come in: each is sent to the replica that suits its prompt, and to another where that one is lost.

Nothing is written to the client before a replica has begun to answer, so until then, and for answers that are not
streamed until they are whole, a lost replica costs time only. A stream that has begun is computed again from its
beginning, with the seed that was drawn for it, and goes on where the client's copy ends (``splice``).
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import msgspec
import structlog
from msgspec import Struct
from msgspec.structs import replace
from ray.exceptions import RayError
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from specproxy.config.schema import LogConfig
from specproxy.errors import BodyTooLarge, EngineFailed, EngineUnavailable, NotFound, RequestError
from specproxy.ray.affinity import PREFIX_CHARS, key_of
from specproxy.ray.call import Broken, Call, Head, Part, Taken
from specproxy.ray.splice import Interrupted, Splice
from specproxy.server.api import error_body, error_event
from specproxy.server.events import KEEP_ALIVE
from specproxy.server.faults import retry_headers
from specproxy.server.layers import GENERATING
from specproxy.server.logs import configure_logs

SEED = "x-specproxy-seed"
REPLICA = "x-specproxy-replica"

NO_METRICS = "each replica has its own /metrics, at the url that its log says when it is ready; see docs/ray.md"


class IngressOptions(Struct, frozen=True):
    """``max_body``: bytes; ``prefix_chars``: of the prompt, that a request is placed by; ``tries``: replicas that a
    request is sent to before it fails; ``wait_s``: how long it waits for one that takes it."""

    max_body: int
    keepalive_s: float
    log: LogConfig
    prefix_chars: int = PREFIX_CHARS
    tries: int = 3
    wait_s: float = 60.0


class Lost(Exception):
    """The replica that worked on a call is gone."""


class Cut(Exception):
    """Ends a body without its end, so that no client takes what it got for the whole answer."""


class Ingress:
    """The deployment. ``replicas``: a handle that places calls."""

    def __init__(self, replicas: Any, options: IngressOptions) -> None:
        configure_logs(options.log)
        self._replicas = replicas.options(method_name="answer", stream=True)
        self._options = options

    async def __call__(self, request: Request) -> Response:
        """Answer one request."""
        try:
            if request.url.path == "/metrics":
                raise NotFound(NO_METRICS)
            return await self._answer(await self._call(request))
        except RequestError as error:
            headers = retry_headers(error)
            return Response(error_body(error.info()), error.status, headers, media_type="application/json")

    async def _call(self, request: Request) -> Call:
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > self._options.max_body:
                raise BodyTooLarge(f"the body is larger than the {self._options.max_body // 2**20} MiB that are taken")
        path = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        headers = tuple((name.decode("latin-1"), value.decode("latin-1")) for name, value in request.headers.raw)
        key = ""
        if request.url.path in GENERATING:
            key = key_of(bytes(body), request.headers.get("authorization", ""), self._options.prefix_chars)
        # What belongs nowhere goes anywhere.
        return Call(request.method, path, headers, bytes(body), key or uuid.uuid4().hex)

    async def _answer(self, call: Call) -> Response:
        """Try replicas until one has answered, or has begun to stream."""
        for left in reversed(range(self._options.tries)):
            attempt = Attempt(self._replicas, call, self._options.wait_s)
            try:
                head = await attempt.head()
                if head.streams:
                    body = self._stream(attempt, head, call)
                    # The first event, so that a replica that is lost before it has not begun to answer.
                    first = await anext(body, b"")
                    return _response(head, attempt.replica, StreamingResponse(_chained(first, body), head.status))
                content = b"".join([part async for part in attempt.body()])
            except Lost as lost:
                structlog.get_logger().warning("replica lost", replica=attempt.replica, tries_left=left, why=str(lost))
            else:
                if head.status != 503 or not left:
                    return _response(head, attempt.replica, Response(content, head.status))
            finally:
                call = replace(call, avoid=(*call.avoid, attempt.replica))
        raise EngineUnavailable("every replica that took this request was lost", retry_after_s=1.0)

    async def _stream(self, attempt: Attempt, head: Head, call: Call) -> AsyncGenerator[bytes]:
        """The events of an answer, from as many replicas as it takes. Raises Lost while nothing was written, Cut once
        it has failed."""
        splice, left, written = Splice(), self._options.tries - 1, time.monotonic()
        while True:
            try:
                async for data in attempt.body():
                    new = splice.feed(data)
                    if not new and time.monotonic() - written > self._options.keepalive_s:
                        new = KEEP_ALIVE
                    if new:
                        written = time.monotonic()
                        yield new
                if splice.ended:
                    return
                raise Lost("the stream has no end")
            except (Lost, Interrupted) as lost:
                if splice.ended:
                    return
                if not splice.begun:
                    raise Lost(str(lost)) from None
                structlog.get_logger().warning("replica lost in a stream", replica=attempt.replica, why=str(lost))
                error: RequestError = EngineFailed("the replica that wrote this answer was lost", code="replica_lost")
            except RequestError as diverged:
                left, error = 0, diverged
            if not left:
                yield error_event(error.info())
                raise Cut(str(error))
            left -= 1
            call = replace(_seeded(call, head), avoid=(*call.avoid, attempt.replica))
            splice.begin_again()
            attempt = Attempt(self._replicas, call, self._options.wait_s)


class Attempt:
    """A call on one replica. ``replica``: its name, once it took the call. Every fault of it is ``Lost``."""

    def __init__(self, replicas: Any, call: Call, wait_s: float) -> None:
        self._answer = replicas.remote(call)
        self._wait_s = wait_s
        self._head: Head | None = None
        self.replica = ""

    async def head(self) -> Head:
        """How the answer begins. Raises Lost, and EngineUnavailable where no replica takes the call."""
        try:
            async with asyncio.timeout(self._wait_s):
                taken = await self._next()
        except TimeoutError:
            self._answer.cancel()
            raise EngineUnavailable("no replica is free", retry_after_s=1.0) from None
        if isinstance(taken, Taken):
            self.replica = taken.replica
        head = await self._next()
        if not isinstance(head, Head):
            raise Lost("it did not begin to answer")
        self._head = head
        return head

    async def body(self) -> AsyncGenerator[bytes]:
        """The body; of a stream, where nobody has asked for the head. What the replica's server told the client of
        raises Cut."""
        if self._head is None and not (head := await self.head()).streams:
            raise Lost(f"it answered with status {head.status}")
        while (part := await self._next()) is not None:
            if isinstance(part, Broken):
                raise Cut("broken off by the replica")
            if isinstance(part, bytes):
                yield part

    async def _next(self) -> Part | None:
        try:
            part: Part = await anext(self._answer)
            return part
        except StopAsyncIteration:
            return None
        except asyncio.CancelledError:
            self._answer.cancel()
            raise
        except RayError as error:
            raise Lost(str(error).splitlines()[0]) from None


def _seeded(call: Call, head: Head) -> Call:
    """The call as it was decided: with the seed that was drawn where the client gave none."""
    body = msgspec.json.decode(call.body)
    body["seed"] = int(head.get(SEED))
    return replace(call, body=msgspec.json.encode(body))


def _response(head: Head, replica: str, response: Response) -> Response:
    """With the headers of the replica's answer, and its name. Serve itself sends the request's id, which it gave the
    request before the replica saw it."""
    found = [(name.lower(), value) for name, value in head.headers if name.lower() != "x-request-id"]
    kept = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in found]
    own = [item for item in response.raw_headers if item[0] == b"content-length"]
    response.raw_headers = [*own, *kept, (REPLICA.encode(), replica.encode())]
    return response


async def _chained(first: bytes, rest: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
    async with aclosing(rest):
        yield first
        async for data in rest:
            yield data

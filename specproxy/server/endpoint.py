"""The two endpoints that generate: read, parse, decide, admit, run, answer."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from aiohttp import web

from specproxy.errors import RequestError, TimedOut
from specproxy.server.api import ApiContext, ParsedRequest, error_event, parse_chat, parse_completion
from specproxy.server.body import read_body
from specproxy.server.events import KEEP_ALIVE, EventStream
from specproxy.server.faults import unexpected
from specproxy.server.generation import Generation
from specproxy.server.job import Job, Origin, plan
from specproxy.server.state import ACCOUNT, DECIDED, KEY_ID, REQUEST_ID, STATE, State

Parser = Callable[[bytes, ApiContext], ParsedRequest]

THREAD_ABOVE_BYTES = 4096
"""Bodies beyond this are parsed and tokenised in a thread: about 1 ms of work, a third of a decode step of the house
model (2 CPU cores), which the event loop owes to the streams of others."""


class Endpoint:
    """What handles one kind of request."""

    def __init__(self, parse: Parser) -> None:
        self._parse = parse

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """Answer one request."""
        state = request.app[STATE]
        served = state.need_served()
        with state.admission.enter() as ticket:
            body = await read_body(request, state.config.server.max_body_mb * 2**20, state.config.server.body_timeout_s)
            request[ACCOUNT].body("in", body)
            parsed = await self._parsed(body, served.context)
            state.log_unknown(parsed.unknown)
            origin = Origin(dict(request.headers), request[KEY_ID], uuid.uuid4().hex)
            job = plan(state, served, parsed, request[ACCOUNT], origin)
            request[DECIDED] = job.headers
            ticket.grow_to(len(job.submissions))
            try:
                response = await (stream if parsed.stream else whole)(request, state, job)
                job.keep()
                return response
            finally:
                job.book()

    async def _parsed(self, body: bytes, context: ApiContext) -> ParsedRequest:
        if len(body) <= THREAD_ABOVE_BYTES:
            return self._parse(body, context)
        return await asyncio.to_thread(self._parse, body, context)


def chat() -> Endpoint:
    """``POST /v1/chat/completions``."""
    return Endpoint(parse_chat)


def completions() -> Endpoint:
    """``POST /v1/completions``."""
    return Endpoint(parse_completion)


async def whole(request: web.Request, state: State, job: Job) -> web.StreamResponse:
    """Generate everything, then answer."""
    async with _running(state, job) as generation:
        while generation.running:
            for index, delta in await generation.take():
                job.take(generation, index, delta)
    body = job.finish()
    job.account.body("out", body)
    job.headers["x-specproxy-accepted"] = str(job.account.record.accepted)
    return web.Response(body=body, content_type="application/json")


async def stream(request: web.Request, state: State, job: Job) -> web.StreamResponse:
    """Answer while it is generated: one write for everything that has arrived."""
    events = EventStream(request)
    try:
        async with _running(state, job) as generation:
            while generation.running:
                batch = await generation.take(state.config.server.keepalive_s)
                data = b"".join([job.take(generation, index, delta) for index, delta in batch])
                job.account.body("out", data)
                if data or not batch:
                    await events.write(data or KEEP_ALIVE)
        # Nothing may be awaited behind the last byte: a client that then closes would cancel a request that is done.
        async with _deadline(job):
            return await events.end(job.finish())
    except ConnectionError:
        raise
    except Exception as raised:
        if events.response is None:
            raise
        # A stream that has begun must end with an error event, whatever went wrong.
        error = raised if isinstance(raised, RequestError) else unexpected(raised, request[REQUEST_ID])
        job.account.failed(error)
        return await events.break_off(error_event(error.info()))


@asynccontextmanager
async def _running(state: State, job: Job) -> AsyncIterator[Generation]:
    """The job's sequences, within its time limit, where a drain can reach them."""
    generation = Generation(job.backend, job.submissions)
    state.active.add(generation)
    try:
        async with _deadline(job), generation:
            yield generation
    finally:
        state.active.discard(generation)


@asynccontextmanager
async def _deadline(job: Job) -> AsyncIterator[None]:
    """Raises TimedOut when the job's time is up."""
    try:
        async with asyncio.timeout(job.remaining_s):
            yield
    except TimeoutError:
        raise TimedOut("the request did not finish within its route's limit (timeout_s)") from None

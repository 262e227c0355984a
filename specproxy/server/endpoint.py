"""The two endpoints that generate: read, parse, decide, admit, run, answer; or let an upstream answer."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace

from aiohttp import web

from specproxy.errors import EngineUnavailable, QueueFull, RequestError, TimedOut
from specproxy.policy.catalogue import ENGINE
from specproxy.server.admission import Ticket
from specproxy.server.api import (
    ApiContext,
    ParsedRequest,
    error_event,
    parse_chat,
    parse_completion,
    wants_format,
)
from specproxy.server.api.body import decode_object
from specproxy.server.body import read_body
from specproxy.server.events import KEEP_ALIVE, EventStream
from specproxy.server.faults import unexpected
from specproxy.server.generation import Generation
from specproxy.server.job import Job, decide, origin_of, plan
from specproxy.server.passthrough import FORWARDING, Failed, Forwarding, Passing, backend_headers
from specproxy.server.state import ACCOUNT, DECIDED, REQUEST_ID, STATE, Served, State
from specproxy.upstream.chain import Link

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
        state, forwarding = request.app[STATE], request.app[FORWARDING]
        served = state.need_served()
        if forwarding.upstreams:
            return await self._by_backends(request, state, served)
        with state.admission.enter() as ticket:
            body = await _body(request, state)
            parsed = await self._parsed(body, served.context)
            origin = origin_of(request)
            decided = decide(state, parsed.path, origin, parsed.body, parsed.prompt_tokens)
            job = plan(state, served, parsed, request[ACCOUNT], origin, decided)
            return await _generate(request, parsed, job, ticket)

    async def _by_backends(self, request: web.Request, state: State, served: Served) -> web.StreamResponse:
        """Read and decide before anything is parsed as the engine needs it: an upstream may take more, or other models.
        Then the route's backends are asked in order."""
        origin = origin_of(request)
        with _reading(state, request.app[FORWARDING]):
            body = await _body(request, state)
            given = decode_object(body)
            tokens = await self._count(body, served.context) if _asks_tokens(state) else None
            decided = decide(state, request.path, origin, given, tokens)

        async def engine(more: bool, failed: Failed) -> web.StreamResponse:
            if more and not state.backend.ready:
                raise EngineUnavailable(state.backend.problem or f"the engine is {state.backend.state}")
            with state.admission.enter() as ticket:
                parsed = await self._parsed(body, state.need_served().context)
                job = plan(state, state.need_served(), parsed, request[ACCOUNT], origin, decided)
                job.headers |= backend_headers(ENGINE, failed)
                return await _generate(request, parsed, job, ticket)

        passing = Passing(request, body, given, decided)
        names = decided.verdict.decision.backends
        return await passing.walk([Link(ENGINE, engine) if name == ENGINE else passing.link(name) for name in names])

    async def _parsed(self, body: bytes, context: ApiContext) -> ParsedRequest:
        if len(body) <= THREAD_ABOVE_BYTES and not wants_format(body):
            return self._parse(body, context)
        return await asyncio.to_thread(self._parse, body, context)

    async def _count(self, body: bytes, context: ApiContext) -> int | None:
        """The prompt's length in tokens of the engine's model, also where it holds fewer; ``None`` for a request
        that the engine cannot read, such as one for another model."""
        try:
            return (await self._parsed(body, replace(context, max_model_len=sys.maxsize))).prompt_tokens
        except RequestError:
            return None


def chat() -> Endpoint:
    """``POST /v1/chat/completions``."""
    return Endpoint(parse_chat)


def completions() -> Endpoint:
    """``POST /v1/completions``."""
    return Endpoint(parse_completion)


async def _generate(request: web.Request, parsed: ParsedRequest, job: Job, ticket: Ticket) -> web.StreamResponse:
    """Have the engine work on a request."""
    state = request.app[STATE]
    state.log_unknown(parsed.unknown)
    request[DECIDED] = job.headers
    ticket.grow_to(len(job.submissions))
    try:
        response = await (stream if parsed.stream else whole)(request, state, job)
        job.keep()
        return response
    finally:
        job.book()


async def _body(request: web.Request, state: State) -> bytes:
    config = state.config.server
    body = await read_body(request, config.max_body_mb * 2**20, config.body_timeout_s)
    request[ACCOUNT].body("in", body)
    return body


@contextmanager
def _reading(state: State, forwarding: Forwarding) -> Iterator[None]:
    """A place while a body is read: in the engine's queue, or, where that is full, one of those for upstreams."""
    try:
        ticket = state.admission.enter()
    except QueueFull:
        ticket = forwarding.admission.enter()
    with ticket:
        yield


def _asks_tokens(state: State) -> bool:
    """Whether what serves, or is on its way, decides by the prompt's length."""
    book = state.gate.book
    return book.serving.counts_tokens or (book.change is not None and book.change.policies.counts_tokens)


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

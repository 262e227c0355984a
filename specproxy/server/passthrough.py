"""Requests that upstreams answer: sent on as they came, and the answer's bytes handed back as they come.

Keep-alives of ours are not mixed into an upstream's stream; its own timeouts bound every silence.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import structlog
from aiohttp import web

from specproxy.errors import Draining, NotFound, RequestError, TimedOut
from specproxy.policy.catalogue import ENGINE
from specproxy.server.admission import Admission
from specproxy.server.body import read_body
from specproxy.server.disclosure import header_safe
from specproxy.server.faults import retry_headers
from specproxy.server.job import Decided, decide, origin_of
from specproxy.server.metrics import SHORT_REVISION
from specproxy.server.relay import Relay, whole_answer
from specproxy.server.state import ACCOUNT, DECIDED, KEY_ID, REQUEST_ID, STATE
from specproxy.upstream.chain import Link, first_answer
from specproxy.upstream.client import Upstream
from specproxy.upstream.errors import UpstreamError
from specproxy.upstream.events import decoded
from specproxy.upstream.pool import Upstreams
from specproxy.upstream.request import Call

API = "/v1"
OUTSIDE = "upstream"
"""What ``x-specproxy-exactness`` says of an answer that we have no part in."""

Failed = Sequence[tuple[str, RequestError]]


class Cut:
    """The time limit of one exchange, which a server on its way out brings forward with an error of its own."""

    def __init__(self, limit_s: float | None) -> None:
        self.error: RequestError = TimedOut("the request did not finish within its route's limit (timeout_s)")
        self.timeout = asyncio.timeout(limit_s)

    def fail(self, error: RequestError) -> None:
        """End the exchange now."""
        self.error = error
        self.timeout.reschedule(asyncio.get_running_loop().time())


@dataclass
class Forwarding:
    """What the handlers share of upstreams. ``admission`` counts requests that are there or on their way; ``running``
    is what a drain cuts off."""

    upstreams: Upstreams
    admission: Admission
    running: set[Cut] = field(default_factory=set)

    @classmethod
    def to(cls, upstreams: Upstreams) -> Forwarding:
        """To all ``upstreams``: as many requests at a time as they take together."""
        return cls(upstreams, Admission(sum(one.config.max_connections for one in upstreams.values())))

    @contextmanager
    def cutting(self, limit_s: float | None) -> Iterator[Cut]:
        """The limit of an exchange, where a drain can reach it."""
        cut = Cut(limit_s)
        self.running.add(cut)
        try:
            yield cut
        finally:
            self.running.discard(cut)


FORWARDING: web.AppKey[Forwarding] = web.AppKey("forwarding", Forwarding)


class Passing:
    """One decided request, ready to go to any upstream of its route."""

    def __init__(self, request: web.Request, body: bytes, given: Mapping[str, Any], decided: Decided) -> None:
        self._request = request
        self._forwarding = request.app[FORWARDING]
        self._metrics = request.app[STATE].metrics
        self._account = request.get(ACCOUNT)
        self._given = given
        self._decided = decided
        model = given.get("model")
        self._call = Call(
            method=request.method,
            path=request.rel_url.raw_path_qs.removeprefix(API),
            headers=request.headers,
            body=body,
            request_id=request[REQUEST_ID],
            model=model if isinstance(model, str) else "",
            stream=given.get("stream") is True,
            generates=self._account is not None,
        )
        self._began = time.perf_counter() if self._account is None else self._account.started

    async def answer(self, upstream: Upstream, failed: Failed) -> web.StreamResponse:
        """What ``upstream`` answers. Raises RequestError while nothing has gone to the client."""
        self._disclose(upstream.name, failed)
        limit_s = self._decided.verdict.limits.timeout_s
        left_s = None if limit_s is None else max(0.0, limit_s - (time.perf_counter() - self._began))
        relay = Relay(self._request, self._account)
        with self._forwarding.admission.enter():
            try:
                response = await self._exchange(upstream, relay, left_s)
            except RequestError as error:
                return await relay.break_off(error)
        if self._account is not None:
            self._metrics.passed_through(self._account.record, self._account.allowed)
        return response

    async def _exchange(self, upstream: Upstream, relay: Relay, limit_s: float | None) -> web.StreamResponse:
        """Raises RequestError, where the answer has begun too."""
        with self._forwarding.cutting(limit_s) as cut:
            try:
                async with cut.timeout, upstream.send(self._call) as answer:
                    return await relay.run(answer)
            except TimeoutError:
                raise cut.error from None

    async def walk(self, links: Sequence[Link[web.StreamResponse]]) -> web.StreamResponse:
        """The answer of the first backend that has one. Raises RequestError."""
        try:
            return await first_answer(links, self._fell_back)
        except UpstreamError as error:
            if error.held is None:
                raise
            if self._account is not None:
                self._account.failed(error)
            response = whole_answer(error.held.status, error.held.headers, error.held.body)
            response.headers.update(retry_headers(error))
            return response

    def links(self, names: Sequence[str]) -> list[Link[web.StreamResponse]]:
        """The upstreams among ``names`` as links of a chain."""
        return [self.link(name) for name in names if name != ENGINE]

    def link(self, name: str) -> Link[web.StreamResponse]:
        """One upstream as a link of a chain."""
        upstream = self._forwarding.upstreams[name]
        return Link(name, lambda more, failed: self.answer(upstream, failed))

    def _disclose(self, backend: str, failed: Failed) -> None:
        decision, account = self._decided.verdict.decision, self._account
        headers = {
            "x-specproxy-route": decision.route,
            "x-specproxy-rule": decision.rule,
            "x-specproxy-policy": decision.revision[:SHORT_REVISION],
            "x-specproxy-exactness": OUTSIDE,
        }
        self._request[DECIDED] = {name: header_safe(value) for name, value in headers.items()} | backend_headers(
            backend, failed
        )
        if account is not None:
            model, seed = self._call.model, self._given.get("seed")
            tokens = self._decided.facts.prompt_tokens or 0
            seed = seed if isinstance(seed, int) else 0
            account.decided(decision, model=model, seed=seed, stream=self._call.stream, prompt_tokens=tokens)
            account.record.exactness, account.record.key_id = OUTSIDE, self._request[KEY_ID]
            # Whatever the engine was about to tell the gate before: this answer is evidence for nothing.
            account.on_close = None

    def _fell_back(self, backend: str, following: str, error: RequestError) -> None:
        route, reason = self._decided.verdict.decision.route, error.code or error.type
        self._metrics.upstreams.fallbacks.labels(route, backend, following, reason).inc()
        structlog.get_logger().warning(
            "fell back", request_id=self._call.request_id, route=route, backend=backend, next=following,
            reason=error.message,
        )  # fmt: skip


async def other(request: web.Request) -> web.StreamResponse:
    """Anything under /v1 that we do not answer ourselves goes to the upstreams of its route. Raises NotFound where
    there are none."""
    state, forwarding = request.app[STATE], request.app[FORWARDING]
    path = request.path
    if not forwarding.upstreams or ".." in path.split("/"):
        raise web.HTTPNotFound
    if state.draining:
        raise Draining("the server is shutting down", retry_after_s=1.0)
    state.need_served()
    with forwarding.admission.enter():
        config = state.config.server
        body = await read_body(request, config.max_body_mb * 2**20, config.body_timeout_s)
        given = decoded(body) if request.content_type == "application/json" else {}
        decided = decide(state, path, origin_of(request), given)
    decision = decided.verdict.decision
    passing = Passing(request, body, given, decided)
    links = passing.links(decision.backends)
    if not links:
        raise NotFound(
            f"there is no {request.method} {path} here: route {decision.route} has no upstream that could have it"
        )
    return await passing.walk(links)


def backend_headers(backend: str, failed: Failed) -> dict[str, str]:
    """Who answers, and who should have."""
    headers = {"x-specproxy-backend": backend}
    if failed:
        headers["x-specproxy-fallback"] = ", ".join(f"{name}: {error.code or error.type}" for name, error in failed)
    return headers

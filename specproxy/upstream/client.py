"""One upstream: what it may be sent, and what becomes of a request until its answer begins."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import structlog

from specproxy.config.schema import UpstreamConfig
from specproxy.upstream.address import address_of
from specproxy.upstream.answer import Answer
from specproxy.upstream.breaker import Breaker, BreakerState
from specproxy.upstream.counters import SpecCounts, from_answer
from specproxy.upstream.errors import AGAIN, FAILURES, Held, Kind, UpstreamError, is_context_too_long, message_of
from specproxy.upstream.headers import request_headers, retry_after_s
from specproxy.upstream.observer import Observer
from specproxy.upstream.request import Call, rewritten

_KEEP_ALIVE_S = 4.0
"""Idle connections are dropped sooner than uvicorn does (5 s): one that both ends give up at a time loses a request."""

_MAX_HEADER = 2**16
_RETRY_PAUSE_S = 0.05
_MEMORY = 0.1
"""Weight of the last answer in the mean duration of answers."""

_FALL_ON = frozenset({408, 429})
"""Refusals that are about the upstream's own state: another backend may take the request."""


class Upstream:
    """Sends requests, ``max_connections`` at a time. ``up``: by its health checks; ``problem``: what it failed of last;
    ``counts``: what it says of its own speculation."""

    def __init__(
        self,
        name: str,
        config: UpstreamConfig,
        key: str,
        observer: Observer,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Raises ConfigError for an address that is none."""
        self.name = name
        self.config = config
        self.address = address_of(name, config)
        self.breaker = Breaker(config.breaker.failures, config.breaker.open_s, clock, self._breaker_moved)
        self.up = True
        self.problem = ""
        self.in_flight = 0
        self.counts: SpecCounts | None = None
        self._key = key
        self._observer = observer
        self._clock = clock
        self._mean_s = 1.0
        self._session: aiohttp.ClientSession | None = None

    @property
    def session(self) -> aiohttp.ClientSession:
        """Made on the first use, in the loop that it belongs to. aiohttp's own limits are off: 100 connections, and 300
        seconds for an answer, would hold for all."""
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEP_ALIVE_S),
                timeout=aiohttp.ClientTimeout(total=None, connect=self.config.timeouts.connect),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                max_line_size=_MAX_HEADER,
                max_field_size=_MAX_HEADER,
                skip_auto_headers={"User-Agent", "Content-Type", "Accept"},
            )
        return self._session

    async def close(self) -> None:
        """Drop all connections."""
        if self._session is not None:
            await self._session.close()

    def refusal(self) -> UpstreamError | None:
        """Why it gets no request now; ``None``: it would get one."""
        if not self.up:
            wait_s = self.config.health.every_s
            return UpstreamError(self.name, "down", f"its health check fails ({self.problem})", retry_after_s=wait_s)
        if self.in_flight >= self.config.max_connections:
            wait_s = min(30.0, max(0.05, self._mean_s / self.config.max_connections)) * random.uniform(1.0, 1.5)
            limit = f"all {self.config.max_connections} connections to it are in use (max_connections)"
            return UpstreamError(self.name, "busy", f"{limit}; try again a little later", retry_after_s=wait_s)
        if self.breaker.state != "closed" and (wait_s := self.breaker.wait_s) > 0:
            return self._open(wait_s)
        return None

    @asynccontextmanager
    async def send(self, call: Call) -> AsyncIterator[Answer]:
        """Send a request; within the block its answer can be read, and leaving it early ends the request there too.

        Raises UpstreamError before the answer has begun, whatever the reason.
        """
        refused = self.refusal()
        if refused is None and not self.breaker.enter():
            refused = self._open(self.breaker.wait_s)
        if refused is not None:
            self._observer.error(self.name, refused.kind)
            raise refused
        self.in_flight += 1
        began, answer = self._clock(), None
        try:
            answer = await self._answer(call, began)
            yield answer
        finally:
            self.in_flight -= 1
            if answer is None:
                self.breaker.abandoned()
            else:
                self._mean_s += _MEMORY * (self._clock() - began - self._mean_s)
                answer.close()

    async def _answer(self, call: Call, began: float) -> Answer:
        """The answer, on the first try or a later one."""
        left = self.config.retries if self.breaker.state == "closed" else 0
        while True:
            try:
                answer = await self._try(call)
            except UpstreamError as error:
                self._observer.error(self.name, error.kind)
                self.problem = error.message
                if error.kind not in AGAIN or not left:
                    (self.breaker.failed if error.failure else self.breaker.answered)()
                    raise
                left -= 1
                await asyncio.sleep(_RETRY_PAUSE_S)
                continue
            self.breaker.answered()
            if answer.status < 400:
                self._observer.first_byte(self.name, self._clock() - began)
            return answer

    async def _try(self, call: Call) -> Answer:
        """One try. Raises UpstreamError."""
        limits = self.config.timeouts
        limit_s = limits.first_byte if call.stream else limits.whole
        response: aiohttp.ClientResponse | None = None
        done = False
        try:
            async with asyncio.timeout(limit_s):
                response = await self._request(call)
                answer = await self._begin(call, response)
                done = True
                return answer
        except aiohttp.ServerTimeoutError:
            raise self._error("timeout_connect", f"no connection within {limits.connect:g} s") from None
        except TimeoutError:
            raise self._error("timeout_first_byte", f"it did not begin to answer within {limit_s:g} s") from None
        except aiohttp.ClientConnectorError as error:
            raise self._error("connect", f"no connection: {error.os_error.strerror or error}") from None
        except (aiohttp.ClientError, OSError) as error:
            raise self._error("lost", f"the connection was lost before the answer began ({error})") from None
        finally:
            if response is not None and not done:
                response.close()

    async def _request(self, call: Call) -> aiohttp.ClientResponse:
        body = rewritten(call.body, call.model, self.config.models) if call.model else call.body
        return await self.session.request(
            call.method,
            self.address.url(call.path),
            data=body or None,
            headers=request_headers(call.headers, call.request_id, self._key),
            allow_redirects=False,
        )

    async def _begin(self, call: Call, response: aiohttp.ClientResponse) -> Answer:
        status = response.status
        self._observer.request(self.name, status)
        if 300 <= status < 400:
            raise self._error("redirect", f"it answers with a redirect ({status}); set url to where it leads")
        good = status < 400
        answer = Answer(
            self.name, response, self.config.timeouts.idle, self._ended if good else _ignore,
            generates=call.generates and good,
        )  # fmt: skip
        await answer.open()
        if not good:
            self._refuse(answer, retry_after_s(response.headers))
        return answer

    def _refuse(self, answer: Answer, wait_s: float | None) -> None:
        """Raise for an error that is no use to the client, or that another backend may better; return for the rest."""
        status, text = answer.status, message_of(answer.first)
        if status >= 500:
            shown = status if status in (503, 504) else 502
            raise self._error("status_5xx", f"it answered {status}: {text}", status=shown, retry_after_s=wait_s)
        if status == 401:
            raise self._error("key_refused", f"it refuses the key of key_env ({text})")
        held = Held(status, answer.headers, answer.first)
        if status in _FALL_ON:
            raise self._error("status_4xx", f"it answered {status}: {text}", status=status, held=held)
        if is_context_too_long(status, answer.first):
            raise self._error("context", text, status=status, held=held)

    def _ended(self, answer: Answer, kind: Kind | None) -> None:
        """A good answer is over; ``None``: it came to its end."""
        if kind is None:
            self.breaker.completed()
            self._count(answer.last_words())
            return
        self._observer.error(self.name, kind)
        if kind in FAILURES:
            self.breaker.failed()

    def _count(self, words: dict[str, Any]) -> None:
        """What an answer says of its own speculation; vLLM's counters have it already."""
        if self.config.kind != "vllm" and (found := from_answer(words)) is not None:
            self.counts = self.counts or SpecCounts()
            self.counts.add(found)

    def _error(
        self, kind: Kind, message: str, *, status: int | None = None, retry_after_s: float | None = None,
        held: Held | None = None,
    ) -> UpstreamError:  # fmt: skip
        return UpstreamError(self.name, kind, message, status=status, retry_after_s=retry_after_s, held=held)

    def _open(self, wait_s: float) -> UpstreamError:
        message = f"it failed {self.config.breaker.failures} times in a row and is given a rest ({self.problem})"
        return self._error("open", message, retry_after_s=wait_s)

    def _breaker_moved(self, state: BreakerState) -> None:
        self._observer.breaker(self.name, state)
        say = structlog.get_logger().error if state == "open" else structlog.get_logger().info
        say("upstream's breaker", upstream=self.name, state=state, problem=self.problem or None)


def _ignore(answer: Answer, kind: Kind | None) -> None:
    """An error's body is nothing that counts."""

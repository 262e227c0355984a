"""One answer of an upstream on its way to the client, and what it tells of itself."""

from __future__ import annotations

import time
from collections.abc import Sequence

from aiohttp import web

from specproxy.errors import RequestError
from specproxy.server.accounting import Account
from specproxy.server.api import error_body, error_event
from specproxy.server.events import EventStream
from specproxy.upstream.answer import EVENTS, Answer
from specproxy.upstream.errors import error_object, message_of
from specproxy.vocabulary import ErrorInfo


class Relay:
    """Carries one answer to the client. ``events``: the response, once it has begun."""

    def __init__(self, request: web.Request, account: Account | None) -> None:
        self._request = request
        self._account = account
        self.events = EventStream(request)

    async def run(self, answer: Answer) -> web.StreamResponse:
        """The whole answer. Raises UpstreamError where it breaks off."""
        if self._account is not None and answer.status >= 400:
            self._account.record.status = answer.status
            self._account.record.error = f"upstream_status_{answer.status}"
        if answer.complete:
            self._book(answer)
            return whole_answer(answer.status, answer.headers, answer.first)
        return await self._flow(answer)

    async def _flow(self, answer: Answer) -> web.StreamResponse:
        """Piece by piece; nothing is awaited behind the last one, with which a client may leave."""
        response = web.StreamResponse(status=answer.status, headers=answer.headers)
        if answer.watch is not None:
            response.headers["X-Accel-Buffering"] = "no"
        else:
            response.content_length = answer.length
        await response.prepare(self._request)
        self.events.response = response
        if self._account is not None and answer.watch is not None:
            self._account.record.ttft_s = time.perf_counter() - self._account.started
        data = answer.first
        while not answer.complete:
            await response.write(data)
            data = await answer.read()
        self._book(answer)
        await response.write_eof(data)
        return response

    async def break_off(self, error: RequestError) -> web.StreamResponse:
        """The answer has begun and does not go on: a stream says so, and no connection ends as if all were well."""
        response = self.events.response
        if response is None:
            raise error
        if self._account is not None:
            self._account.failed(error)
        if response.content_type == EVENTS:
            return await self.events.break_off(error_event(error.info()))
        response.force_close()
        if self._request.transport is not None:
            self._request.transport.abort()
        return response

    def _book(self, answer: Answer) -> None:
        """What the answer says of itself goes into the record."""
        if self._account is None or answer.status >= 400:
            return
        record, words = self._account.record, answer.last_words()
        usage = words.get("usage")
        if isinstance(usage, dict):
            record.prompt_tokens = _count(usage.get("prompt_tokens")) or record.prompt_tokens
            record.completion_tokens = _count(usage.get("completion_tokens"))
        if answer.watch is not None:
            record.finish_reasons = list(answer.watch.finish_reasons)
        else:
            choices = words.get("choices")
            listed = (
                [c.get("finish_reason") for c in choices if isinstance(c, dict)] if isinstance(choices, list) else []
            )
            record.finish_reasons = [reason for reason in listed if isinstance(reason, str)]


def whole_answer(status: int, headers: Sequence[tuple[str, str]], body: bytes) -> web.Response:
    """An answer that is all there. An error that has not OpenAI's form gets it: clients read nothing else."""
    if status >= 400 and error_object(body) is None:
        kind = "rate_limit_error" if status == 429 else "invalid_request_error"
        info = ErrorInfo(message_of(body) or f"the upstream answered {status}", status, kind)
        return web.Response(status=status, body=error_body(info), content_type="application/json")
    response = web.Response(status=status, body=body)
    response.headers.popall("Content-Type", None)
    response.headers.extend(headers)
    return response


def _count(value: object) -> int:
    return value if isinstance(value, int) and value >= 0 else 0

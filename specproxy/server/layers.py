"""The layers around every handler, one concern each. Order: identify, account, faults, drain, authorise, limit."""

from __future__ import annotations

import asyncio
import re
import uuid
from collections.abc import Awaitable, Callable

from aiohttp import web

from specproxy.errors import Draining, RequestError, Unauthenticated
from specproxy.server.accounting import CLIENT_CLOSED, Account
from specproxy.server.faults import error_response, from_http, unexpected
from specproxy.server.state import ACCOUNT, DECIDED, KEY_ID, PASS, REQUEST_ID, STATE

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

GENERATING = frozenset({"/v1/chat/completions", "/v1/completions"})
"""Paths whose requests are recorded, and refused while the server drains."""

_SANE_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}\Z")


@web.middleware
async def identify(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every request has an id: the client's, if it is sane, or a new one."""
    given = request.headers.get("x-request-id", "")
    request[REQUEST_ID] = given if _SANE_ID.match(given) else f"req_{uuid.uuid4().hex}"
    return await handler(request)


async def disclose(request: web.Request, response: web.StreamResponse) -> None:
    """Id and decision go out with every answer, streams and errors included. An ``on_response_prepare`` signal."""
    if REQUEST_ID in request:
        response.headers["x-request-id"] = request[REQUEST_ID]
    if DECIDED in request:
        response.headers.update(request[DECIDED])
    if PASS in request:
        response.headers.update(request[PASS].headers())


@web.middleware
async def account(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Requests for answers leave one record, however they end."""
    if request.path not in GENERATING:
        return await handler(request)
    state = request.app[STATE]
    books = request[ACCOUNT] = Account(
        state.metrics, request[REQUEST_ID], request.path, log_bodies=state.config.log.bodies
    )
    retries = request.headers.get("x-stainless-retry-count", "")
    books.record.retries = int(retries) if retries.isdecimal() else 0
    try:
        return await handler(request)
    except (asyncio.CancelledError, ConnectionError):
        books.record.status = CLIENT_CLOSED
        raise
    finally:
        books.close()
        if state.tracing is not None:
            state.tracing.ended(books.record, request.headers)


@web.middleware
async def faults(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Whatever is raised before the first byte becomes an error answer."""
    extra: dict[str, str] = {}
    try:
        return await handler(request)
    except RequestError as raised:
        error = raised
    except web.HTTPException as raised:
        error = from_http(raised, request)
        extra = {name: raised.headers[name] for name in ("Allow",) if name in raised.headers}
    except ConnectionError:
        raise
    except Exception as raised:  # noqa: BLE001 - the last resort: logged with its id, answered with a 500
        error = unexpected(raised, request[REQUEST_ID])
    if ACCOUNT in request:
        request[ACCOUNT].failed(error)
    response = error_response(error)
    response.headers.update(extra)
    return response


@web.middleware
async def drain(request: web.Request, handler: Handler) -> web.StreamResponse:
    """A server on its way out takes no new work."""
    state = request.app[STATE]
    if state.draining and request.path in GENERATING:
        raise Draining("the server is shutting down", retry_after_s=1.0)
    return await handler(request)


@web.middleware
async def authorise(request: web.Request, handler: Handler) -> web.StreamResponse:
    """With keys configured, everything under /v1 needs one of them; its id, never the key, goes on."""
    keys = request.app[STATE].keys
    request[KEY_ID] = ""
    if len(keys) and request.path.startswith("/v1/"):
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            raise Unauthenticated("no API key was given; send it as: Authorization: Bearer KEY")
        key_id = keys.lookup(token.strip())
        if key_id is None:
            raise Unauthenticated("the API key is not known here")
        request[KEY_ID] = key_id
    return await handler(request)


@web.middleware
async def limit(request: web.Request, handler: Handler) -> web.StreamResponse:
    """A key that has limits keeps to them, whatever it asks for; what its answers took is counted when they end."""
    quotas, key_id = request.app[STATE].quotas, request[KEY_ID]
    if not quotas.bind(key_id) or request.method != "POST":
        return await handler(request)
    if (books := request.get(ACCOUNT)) is not None:
        books.record.key_id = key_id
    request[PASS] = quotas.look(key_id)
    with request[PASS] as used:
        try:
            return await handler(request)
        finally:
            if books is not None:
                used.tokens = books.record.prompt_tokens + books.record.completion_tokens


ONION = (identify, account, faults, drain, authorise, limit)

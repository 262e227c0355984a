"""Errors as HTTP answers: OpenAI's body, and the headers that tell a client whether and when to try again."""

from __future__ import annotations

import math

import structlog
from aiohttp import web

from specproxy.errors import RequestError
from specproxy.server.api import error_body

_PHRASES = {404: "there is no {method} {path} here", 405: "{path} does not take {method}"}


def error_response(error: RequestError) -> web.Response:
    """The whole answer to a request that failed before its first byte."""
    headers = retry_headers(error)
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    body = error_body(error.info())
    return web.Response(status=error.status, body=body, content_type="application/json", headers=headers)


def retry_headers(error: RequestError) -> dict[str, str]:
    """``x-should-retry`` overrides the client's own table; ``retry-after-ms`` is read before ``retry-after``."""
    headers: dict[str, str] = {}
    if error.retry is not None:
        headers["x-should-retry"] = "true" if error.retry else "false"
    if error.retry_after_s is not None:
        headers["retry-after-ms"] = str(math.ceil(error.retry_after_s * 1000))
        headers["retry-after"] = str(math.ceil(error.retry_after_s))
    return headers


def from_http(error: web.HTTPException, request: web.Request) -> RequestError:
    """What aiohttp refuses by itself, such as an unknown path, in our form."""
    phrase = _PHRASES.get(error.status, error.reason)
    ours = RequestError(phrase.format(method=request.method, path=request.path))
    ours.status = error.status
    if error.status < 500:
        ours.type = "invalid_request_error"
    return ours


def unexpected(error: BaseException, request_id: str) -> RequestError:
    """A fault of ours: the client gets the id under which the log has the rest."""
    structlog.get_logger().error("request failed unexpectedly", request_id=request_id, exc_info=error)
    return RequestError(f"internal error; the server's log has it under request id {request_id}", code="internal_error")

"""Errors in OpenAI's form: a body with the four keys, and the same as the last event of a broken stream."""

from __future__ import annotations

import msgspec
from msgspec import Struct

from specproxy.errors import EngineFailed, EngineUnavailable, InvalidRequest, RequestError, TimedOut
from specproxy.vocabulary import Delta, ErrorInfo

_KINDS: dict[int, type[RequestError]] = {400: InvalidRequest, 503: EngineUnavailable, 504: TimedOut}
"""Errors that a client treats differently; all others of the engine would fail again."""


class _ErrorObject(Struct):
    message: str
    type: str
    param: str | None
    code: str | None


class _ErrorBody(Struct):
    error: _ErrorObject


def error_body(info: ErrorInfo) -> bytes:
    """JSON ``{"error": {"message", "type", "param", "code"}}``, all four keys always there."""
    return msgspec.json.encode(_ErrorBody(_ErrorObject(info.message, info.type, info.param, info.code)))


def error_event(info: ErrorInfo) -> bytes:
    """The same as one SSE event. Write it, then abort the connection: a failed stream never ends cleanly."""
    return b"data: " + error_body(info) + b"\n\n"


def error_of(delta: Delta) -> RequestError | None:
    """The error that a delta reports, as an exception with the status the engine gave it; ``None`` if it has none."""
    if delta.error is None and delta.finish_reason not in ("error", "abort"):
        return None
    info = delta.error or ErrorInfo("the engine ended this sequence without an answer")
    kind = _KINDS.get(info.status, EngineFailed)
    error = kind(info.message, param=info.param, code=info.code)
    error.status, error.type = info.status, info.type
    return error

"""Every error specproxy raises on purpose.

    SpecproxyError
    ├── StartError            the process cannot start: one message, non-zero exit
    │   ├── ConfigError       start configuration
    │   ├── ModelLoadError    target or drafter
    │   ├── PolicyError       policy files (file, line, key, expectation)
    │   └── AdminRefused      an admin API that says no, or that does not answer
    ├── WireError             a frame or a peer that does not speak our protocol
    ├── BadLogits             a model answered with NaN
    ├── RankLost              a process that shares the target has ended
    ├── StoreDamaged          the gate's file cannot be read, or does not agree with itself
    └── RequestError          becomes an HTTP answer in OpenAI's error form
        ├── InvalidRequest            400
        │   └── ContextTooLong        400 context_length_exceeded
        ├── Unauthenticated           401 invalid_api_key
        ├── NotFound                  404
        │   ├── ModelNotFound         404 model_not_found
        │   └── UnknownRevision       404 unknown_revision
        ├── IllegalMove               409 illegal_move
        ├── StaleWrite                412 stale_version
        ├── BodyTooLarge              413
        ├── QueueFull                 429 rate_limit_exceeded, retry-after-ms
        ├── KeyLimited                429 rate_limit_exceeded, retry-after-ms
        ├── EngineFailed              500
        ├── Draining                  503, retry-after
        ├── EngineUnavailable         503
        └── TimedOut                  504

Low layers raise the bare error; the edge adds request id and headers.
"""

from __future__ import annotations

from typing import Literal

from specproxy.vocabulary import ErrorInfo


class SpecproxyError(Exception):
    """Base of the tree."""


class StartError(SpecproxyError):
    """specproxy cannot start. The message says what, where, what was expected, what to do."""


class ConfigError(StartError):
    """The start configuration is wrong."""


class ModelLoadError(StartError):
    """A target or drafter cannot be loaded."""


class PolicyError(StartError):
    """A policy set is wrong. ``problems`` has one line per fault: ``file:line: key: what, expected, what to do``."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class AdminRefused(StartError):
    """A command that asked a server's admin API got no for an answer, or none. ``status``: of HTTP, 0 where nobody
    answered; ``code``: OpenAI's, where there is one."""

    def __init__(self, message: str, status: int = 0, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class WireError(SpecproxyError):
    """The peer sent something that is not a frame of this protocol version."""


class BadLogits(SpecproxyError):
    """The target's logits hold NaN. ``rows``: which rows of the call; the others can be sampled without them."""

    def __init__(self, rows: list[int]) -> None:
        super().__init__(f"NaN among the logits of rows {rows}")
        self.rows = rows


class RankLost(SpecproxyError):
    """A process that holds a part of the target has ended; the engine cannot go on without it."""


class StoreDamaged(SpecproxyError):
    """The gate's file cannot be read, is of another version, or its audit log was changed behind our back."""


class RequestError(SpecproxyError):
    """A request that gets an error answer. Class attributes are the OpenAI form; ``param`` names the field."""

    status = 500
    type = "server_error"
    code: str | None = None
    retry: bool | None = None
    """Value of x-should-retry; ``None`` leaves the decision to the client's own table."""

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s
        if code is not None:
            self.code = code

    def info(self) -> ErrorInfo:
        """The error as data, for a frame or a body."""
        return ErrorInfo(self.message, self.status, self.type, self.code, self.param)


class InvalidRequest(RequestError):
    """The request is malformed, or asks for something that is not supported."""

    status = 400
    type = "invalid_request_error"


class ContextTooLong(InvalidRequest):
    """Prompt and answer do not fit the model's context."""

    code = "context_length_exceeded"


class Unauthenticated(RequestError):
    """No key, or an unknown one."""

    status = 401
    type = "invalid_request_error"
    code = "invalid_api_key"


class NotFound(RequestError):
    """No such path or object."""

    status = 404
    type = "invalid_request_error"


class ModelNotFound(NotFound):
    """The model is not served here."""

    code = "model_not_found"


class UnknownRevision(NotFound):
    """No such revision of this route."""

    code = "unknown_revision"


class IllegalMove(RequestError):
    """The gate's states do not allow this move."""

    status = 409
    type = "invalid_request_error"
    code = "illegal_move"
    retry = False


class StaleWrite(RequestError):
    """Somebody else moved the gate's state since it was read."""

    status = 412
    type = "invalid_request_error"
    code = "stale_version"
    retry = False


class BodyTooLarge(RequestError):
    """The body is larger than the configured limit."""

    status = 413
    type = "invalid_request_error"
    code = "request_too_large"


class QueueFull(RequestError):
    """More requests wait than the configured limit."""

    status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"
    retry = True


class KeyLimited(RequestError):
    """This API key has used up its share of the minute, or has too many requests at once. ``limited``: OpenAI's name of
    what there is too much of."""

    status = 429
    code = "rate_limit_exceeded"
    retry = True

    def __init__(self, message: str, limited: Literal["requests", "tokens"], retry_after_s: float) -> None:
        super().__init__(message, retry_after_s=retry_after_s)
        self.type = limited


class EngineFailed(RequestError):
    """This request failed in the engine, and would fail again."""

    status = 500
    retry = False


class Draining(RequestError):
    """The server is shutting down."""

    status = 503
    code = "draining"
    retry = True


class EngineUnavailable(RequestError):
    """The engine is not there (yet)."""

    status = 503
    code = "engine_unavailable"
    retry = True


class TimedOut(RequestError):
    """The request did not finish within its limit."""

    status = 504
    code = "timeout"
    retry = False

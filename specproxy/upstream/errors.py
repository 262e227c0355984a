"""What can go wrong with an upstream before its answer has begun: each says whether it is the upstream's fault."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from specproxy.errors import RequestError

Kind = Literal[
    "connect", "lost", "timeout_connect", "timeout_first_byte", "timeout_idle", "status_5xx", "status_4xx",
    "redirect", "key_refused", "context", "stream_error", "busy", "open", "down",
]  # fmt: skip

FAILURES: frozenset[Kind] = frozenset(
    {"connect", "lost", "timeout_connect", "timeout_first_byte", "timeout_idle", "status_5xx"}
)
"""What a breaker counts: what a client's request cannot bring about by itself. No answer below 500 is in it."""

AGAIN: frozenset[Kind] = frozenset({"connect", "lost", "timeout_connect"})
"""After these another try of the same upstream may do: nothing of an answer has come."""

_STATUS: dict[Kind, int] = {
    "timeout_connect": 504,
    "timeout_first_byte": 504,
    "timeout_idle": 504,
    "busy": 429,
    "open": 503,
    "down": 503,
}
_TEXT = 300
"""Characters of an upstream's own message that are repeated."""


@dataclass(frozen=True)
class Held:
    """An answer of an upstream that was kept back, as another backend may do better: what the client gets where none
    does. ``headers``: those that may go on."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes


class UpstreamError(RequestError):
    """An upstream has no answer to this request, and nothing of one went to the client. ``kind`` is a metric's label;
    ``held``: what it answered, where the client should get just that."""

    def __init__(
        self,
        upstream: str,
        kind: Kind,
        message: str,
        *,
        status: int | None = None,
        retry_after_s: float | None = None,
        held: Held | None = None,
    ) -> None:
        super().__init__(f"upstream {upstream}: {message}", code=f"upstream_{kind}", retry_after_s=retry_after_s)
        self.upstream = upstream
        self.kind = kind
        self.held = held
        self.status = _STATUS.get(kind, 502) if status is None else status
        if self.status == 429:
            self.type, self.code = "rate_limit_error", "rate_limit_exceeded"
        if kind in ("key_refused", "redirect"):
            self.retry = False

    @property
    def failure(self) -> bool:
        """Whether it counts against the upstream."""
        return self.kind in FAILURES


def error_object(body: bytes) -> dict[str, Any] | None:
    """OpenAI's error object in a body; ``None`` where it has another form."""
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    error = value.get("error") if isinstance(value, dict) else None
    return error if isinstance(error, dict) and isinstance(error.get("message"), str) else None


def message_of(body: bytes) -> str:
    """What an error body says, whatever its form: OpenAI's, ``{"detail": …}``, ``{"message": …}``, or plain text."""
    error = error_object(body)
    if error is not None:
        return str(error["message"])[:_TEXT]
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return body.decode(errors="replace").strip()[:_TEXT]
    if isinstance(value, dict):
        value = next((value[key] for key in ("message", "detail", "error") if value.get(key)), value)
    return (value if isinstance(value, str) else msgspec.json.encode(value).decode())[:_TEXT]


def is_context_too_long(status: int, body: bytes) -> bool:
    """Whether a refusal says that prompt and answer do not fit: OpenAI's code, or the words of other servers."""
    if status not in (400, 413, 422):
        return False
    error = error_object(body) or {}
    text = message_of(body).lower()
    return error.get("code") == "context_length_exceeded" or "context length" in text or "context size" in text

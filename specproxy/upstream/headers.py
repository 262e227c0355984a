"""Which headers of a request go to an upstream, and which of its answer go to the client (RFC 9110, section 7.6.1)."""

from __future__ import annotations

import contextlib
import email.utils
import re
import time
from collections.abc import Iterable

from multidict import CIMultiDict, CIMultiDictProxy

HOP_BY_HOP = frozenset(
    {
        "connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection", "te", "trailer",
        "transfer-encoding", "upgrade",
    }
)  # fmt: skip

_NOT_SENT = HOP_BY_HOP | {
    # Ours to say: the body goes decompressed and with another length, the answer must be readable on its way.
    "host", "content-length", "content-encoding", "accept-encoding", "expect", "x-request-id",
    # Credentials and the accounts that they belong to: a client's are for us alone.
    "authorization", "api-key", "x-api-key", "cookie", "openai-organization", "openai-project",
}  # fmt: skip

_NOT_RETURNED = HOP_BY_HOP | {
    # Ours to say.
    "content-length", "date", "server", "x-request-id",
    # About the connection between us and the upstream, or the account that we have there.
    "alt-svc", "set-cookie", "strict-transport-security", "www-authenticate", "location",
}  # fmt: skip

_OURS = "x-specproxy-"
"""Orders to us, and our words about an answer."""

_SURROGATE = re.compile("[\ud800-\udfff]")

UPSTREAM_ID = "x-specproxy-upstream-request-id"
"""The upstream's own id of a request, for its operators; ``x-request-id`` is ours."""


def request_headers(given: CIMultiDictProxy[str], request_id: str, key: str) -> CIMultiDict[str]:
    """What an upstream gets of a client's headers. ``key``: for this upstream; empty: none is sent."""
    dropped = _NOT_SENT | _named(given.getall("Connection", ()))
    sent = CIMultiDict(
        (name, value) for name, value in given.items() if name.lower() not in dropped and _goes_on(name, value)
    )
    sent["Accept-Encoding"] = "identity"
    sent["x-request-id"] = request_id
    if key:
        sent["Authorization"] = f"Bearer {key}"
    return sent


def response_headers(given: CIMultiDictProxy[str]) -> tuple[tuple[str, str], ...]:
    """What a client gets of an upstream's headers, in order."""
    dropped = _NOT_RETURNED | _named(given.getall("Connection", ()))
    kept = [(name, value) for name, value in given.items() if name.lower() not in dropped and _goes_on(name, value)]
    if "x-request-id" in given:
        kept.append((UPSTREAM_ID, given["x-request-id"]))
    return tuple(kept)


def retry_after_s(given: CIMultiDictProxy[str]) -> float | None:
    """When to come back, seconds: ``retry-after-ms``, else ``retry-after`` as seconds or as a date."""
    with contextlib.suppress(ValueError):  # then it is a date
        if "retry-after-ms" in given:
            return max(0.0, float(given["retry-after-ms"]) / 1000)
        if "retry-after" in given:
            return max(0.0, float(given["retry-after"]))
    parsed = email.utils.parsedate_tz(given.get("retry-after", ""))
    return None if parsed is None else max(0.0, email.utils.mktime_tz(parsed) - time.time())


def _named(connection: Iterable[str]) -> frozenset[str]:
    """Headers that ``Connection`` makes hop-by-hop."""
    return frozenset(name.strip().lower() for line in connection for name in line.split(","))


def _goes_on(name: str, value: str) -> bool:
    """Not our own, and nothing that could not be written again: bytes outside of UTF-8 come as surrogates."""
    return not name.lower().startswith(_OURS) and (value.isascii() or not _SURROGATE.search(value))

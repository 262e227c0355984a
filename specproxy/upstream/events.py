"""A stream of server-sent events on its way through: cut at the ends of events, and read for what it says of itself."""

from __future__ import annotations

import re
from collections import deque
from typing import Any

import msgspec

_ENDS = (b"\n\n", b"\r\n\r\n", b"\r\r")
MAX_HELD = 2**20
"""Bytes of an event that has no end yet; one that is longer goes on in pieces."""

_TAIL = 4
"""Pieces of a stream that are kept to be read at its end: usage comes with the last event or the one before [DONE]."""

_TAIL_BYTES = 2**16
_FINISH = re.compile(rb'"finish_reason"\s*:\s*"(\w+)"')
"""Inside of JSON text every quote has a backslash before it, so that no generated text can look like this."""


class EventCutter:
    """Hands on whole events and holds the beginning of the next one, so that a stream which breaks off can end with an
    event of ours. The bytes that are handed on are those that came, in their order."""

    def __init__(self) -> None:
        self.held = b""

    def feed(self, data: bytes) -> bytes:
        """``data`` arrived; whatever is whole now."""
        data = self.held + data
        end = max(place + len(mark) if (place := data.rfind(mark)) >= 0 else 0 for mark in _ENDS)
        if not end and len(data) > MAX_HELD:
            end = len(data)
        self.held = data[end:]
        return data[:end]

    def rest(self) -> bytes:
        """What had no end."""
        held, self.held = self.held, b""
        return held


class StreamWatch:
    """What a stream of a chat or a completion says: whether it is whole, and its last words."""

    def __init__(self) -> None:
        self.finish_reasons: list[str] = []
        self.failed = False
        self.done = False
        self._tail: deque[bytes] = deque(maxlen=_TAIL)

    def see(self, data: bytes) -> None:
        """Whole events went by."""
        self.finish_reasons += [reason.decode() for reason in _FINISH.findall(data)]
        self.failed = self.failed or data.startswith(b'data: {"error"') or b'\ndata: {"error"' in data
        self.done = self.done or b"data: [DONE]" in data or b"data:[DONE]" in data
        self._tail.append(data[-_TAIL_BYTES:])

    @property
    def whole(self) -> bool:
        """Whether the answer came to an end of its own: not all servers close with [DONE]."""
        return self.done or self.failed or bool(self.finish_reasons)

    def last_words(self) -> dict[str, Any]:
        """The keys of the last events, the later winning: usage, timings, meta_info. Empty where none is readable."""
        found: dict[str, Any] = {}
        for line in b"".join(self._tail).splitlines():
            payload = line.removeprefix(b"data:").strip()
            if line.startswith(b"data:") and payload.startswith(b"{"):
                found |= {name: value for name, value in decoded(payload).items() if value is not None}
        return found


def decoded(body: bytes) -> dict[str, Any]:
    """A JSON object; empty where ``body`` is something else."""
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}

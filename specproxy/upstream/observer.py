"""Who wants to know what becomes of requests to upstreams."""

from __future__ import annotations

from typing import Protocol

from specproxy.upstream.breaker import BreakerState
from specproxy.upstream.errors import Kind


class Observer(Protocol):
    """Told of every request and of every change; must not wait."""

    def request(self, upstream: str, status: int) -> None:
        """An upstream has begun an answer with this status."""
        ...

    def first_byte(self, upstream: str, seconds: float) -> None:
        """So long a request waited for the first of a good answer."""
        ...

    def error(self, upstream: str, kind: Kind) -> None:
        """A request got no answer, or not all of one."""
        ...

    def breaker(self, upstream: str, state: BreakerState) -> None:
        """A breaker has another state."""
        ...

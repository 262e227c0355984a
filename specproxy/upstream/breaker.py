"""A circuit breaker: after several failures in a row nothing is sent for a while, then one request to try."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

BreakerState = Literal["closed", "open", "half_open"]

_MOST_DOUBLINGS = 3
"""A trial that fails doubles the wait, this often at most."""


class Breaker:
    """Counts failed requests in a row. ``on_state`` hears of every change. All calls come from one thread.

    The count starts again when an answer was complete, and not before: an upstream that dies at the tenth token of
    every answer fails each time. What a client's request is to blame for is told as ``answered``: it shows that the
    upstream is there, which ends a trial, and else changes nothing.
    """

    def __init__(
        self, failures: int, open_s: float, clock: Callable[[], float], on_state: Callable[[BreakerState], None]
    ) -> None:
        self.state: BreakerState = "closed"
        self._limit = failures
        self._open_s = open_s
        self._clock = clock
        self._on_state = on_state
        self._failures = 0
        self._trials = 0
        self._until = 0.0
        self._trying = False

    @property
    def wait_s(self) -> float:
        """Seconds until a request may be sent; 0 where one may be now."""
        if self.state == "open":
            return max(0.0, self._until - self._clock())
        return self._open_s if self._trying else 0.0

    def enter(self) -> bool:
        """Whether a request may be sent now. One that is let in ends with ``answered``, ``failed`` or ``abandoned``."""
        if self.state == "open" and self._clock() >= self._until:
            self._set("half_open")
        if self.state == "closed":
            return True
        if self.state == "open" or self._trying:
            return False
        self._trying = True
        return True

    def answered(self) -> None:
        """The upstream has begun an answer, whatever the answer is."""
        self._trying = False
        if self.state == "half_open":
            self._trials = self._failures = 0
            self._set("closed")

    def completed(self) -> None:
        """An answer with status 2xx came to its end."""
        self._failures = 0

    def failed(self) -> None:
        """A request failed."""
        self._trying = False
        self._failures += 1
        if self.state == "half_open":
            self._trials += 1
        elif self.state == "open" or self._failures < self._limit:
            return
        self._until = self._clock() + self._open_s * 2.0 ** min(self._trials, _MOST_DOUBLINGS)
        self._set("open")

    def abandoned(self) -> None:
        """Nobody waits for the request any more, and nothing is known of it."""
        self._trying = False

    def _set(self, state: BreakerState) -> None:
        self.state = state
        self._on_state(state)

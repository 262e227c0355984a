"""How many sequences may wait or run at once, and when to come back when that is too many."""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType

from specproxy.errors import InvalidRequest, QueueFull

_WINDOW = 64
"""Endings from which the drain rate is taken."""

_FALLBACK_S = 1.0
_MIN_S, _MAX_S = 0.05, 30.0


class Admission:
    """Counts sequences from the arrival of their request to its end. ``limit`` bounds them.

    A request takes one place before its body is read and the others once its sequences are counted, so that bodies
    being read or tokenised are bounded too.
    """

    def __init__(self, limit: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.limit = limit
        self.depth = 0
        self._clock = clock
        self._idle = asyncio.Event()
        self._idle.set()
        self._endings: deque[float] = deque(maxlen=_WINDOW)

    def enter(self) -> Ticket:
        """One place. Raises QueueFull."""
        self.take(1)
        return Ticket(self)

    def take(self, count: int) -> None:
        """``count`` places more. Raises QueueFull."""
        if self.depth + count > self.limit:
            raise QueueFull(
                f"{self.depth} sequences wait or run, and the limit is {self.limit}; try again a little later",
                retry_after_s=self.retry_after_s(self.depth + count - self.limit),
            )
        self.depth += count
        self._idle.clear()

    async def wait_idle(self) -> None:
        """Until nothing is in flight."""
        await self._idle.wait()

    def give_back(self, count: int) -> None:
        """``count`` sequences ended."""
        self.depth -= count
        if not self.depth:
            self._idle.set()
        now = self._clock()
        self._endings.extend([now] * count)

    def retry_after_s(self, excess: int) -> float:
        """When ``excess`` places will be free at the rate of the last endings, seconds, jittered upwards so that those
        who were refused together do not come back together."""
        rate = self._drain_rate()
        wait = excess / rate if rate > 0 else _FALLBACK_S
        return min(max(wait, _MIN_S), _MAX_S) * random.uniform(1.0, 1.5)

    def _drain_rate(self) -> float:
        """Sequences per second over the window, which ends now: a server that stands still drains ever more slowly."""
        if len(self._endings) < 2:
            return 0.0
        span = self._clock() - self._endings[0]
        return len(self._endings) / span if span > 0 else 0.0


class Ticket:
    """The places of one request; leaving the ``with`` block gives all of them back."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._count = 1

    def grow_to(self, count: int) -> None:
        """Hold ``count`` places in all. Raises QueueFull, or InvalidRequest where no waiting would ever help."""
        if count > self._admission.limit:
            raise InvalidRequest(
                f"this request asks for {count} answers, and this server works on {self._admission.limit} at once; "
                "split the list of prompts, or lower n",
                param="n",
            )
        more = count - self._count
        if more > 0:
            self._admission.take(more)
            self._count = count

    def __enter__(self) -> Ticket:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._admission.give_back(self._count)
        self._count = 0

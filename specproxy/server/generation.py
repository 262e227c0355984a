"""All sequences of one request as one stream of deltas: whoever writes the answer waits in one place."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from types import TracebackType
from typing import Self

from specproxy.backend import Backend
from specproxy.server.flight import is_last, merge
from specproxy.vocabulary import Delta, Submission


class Generation:
    """Runs submissions on a backend from ``async with`` to its end; leaving early aborts what still runs.

    Deltas that nobody has taken are merged per sequence, so a client that reads slowly gets fewer and larger events,
    and its backlog is never more than its own answer.
    """

    def __init__(self, backend: Backend, submissions: Sequence[Submission]) -> None:
        self._backend = backend
        self._submissions = submissions
        self._inbox: dict[int, Delta] = {}
        self._failure: BaseException | None = None
        self._waiter: asyncio.Future[bool] | None = None
        self._running = set(range(len(submissions)))

    @property
    def running(self) -> bool:
        """Whether anything is still to come."""
        return bool(self._running or self._inbox)

    async def take(self, idle_s: float | None = None) -> list[tuple[int, Delta]]:
        """What arrived since the last call, as (index of the submission, delta), at most one each.

        Waits when that is nothing; after ``idle_s`` seconds of it, returns an empty list. Raises what ``fail`` got.
        """
        while not self._inbox and self._failure is None and self._running:
            if not await self._wait(idle_s):
                break
        if self._failure is not None:
            raise self._failure
        batch = list(self._inbox.items())
        self._inbox.clear()
        return batch

    def finish(self, index: int) -> None:
        """The answer of this sequence is complete although it would go on."""
        self._backend.finish(self._submissions[index].id)

    def fail(self, error: BaseException) -> None:
        """Make the reader raise ``error`` at its next turn."""
        self._failure = self._failure or error
        self._wake()

    async def __aenter__(self) -> Self:
        try:
            for i, submission in enumerate(self._submissions):
                self._backend.start(submission, partial(self._put, i))
        except BaseException:
            self._cancel()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._cancel()

    def _cancel(self) -> None:
        for index in self._running:
            self._backend.cancel(self._submissions[index].id)

    def _put(self, index: int, delta: Delta) -> None:
        if is_last(delta):
            self._running.discard(index)
        before = self._inbox.get(index)
        self._inbox[index] = delta if before is None else merge(before, delta)
        self._wake()

    def _wake(self, came: bool = True) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(came)

    async def _wait(self, idle_s: float | None) -> bool:
        """Until something changes (True), or ``idle_s`` seconds have passed (False)."""
        loop = asyncio.get_running_loop()
        self._waiter = loop.create_future()
        timer = loop.call_later(idle_s, self._wake, False) if idle_s is not None else None
        try:
            return await self._waiter
        finally:
            self._waiter = None
            if timer is not None:
                timer.cancel()

"""One sequence in flight: what was asked, what came back so far, and what its reader has not taken yet."""

from __future__ import annotations

import asyncio

from msgspec.structs import replace

from specproxy.vocabulary import Delta, ErrorInfo, Submission

MAX_BARREN_DEATHS = 2
"""Engine deaths, with no token in between, after which a sequence is taken for their cause and not tried again."""


def merge(first: Delta, second: Delta) -> Delta:
    """Two deltas of one sequence, in order, as one. Mutates and returns ``first``."""
    first.tokens.extend(second.tokens)
    if second.logprobs is not None:
        first.logprobs = [*(first.logprobs or ()), *second.logprobs]
    if second.prompt_logprobs is not None:
        first.prompt_logprobs = second.prompt_logprobs
    first.finish_reason = second.finish_reason or first.finish_reason
    first.stop_token = second.stop_token if second.stop_token is not None else first.stop_token
    first.stats = second.stats or first.stats
    first.error = second.error or first.error
    return first


def is_last(delta: Delta) -> bool:
    """Whether nothing of this sequence follows."""
    return delta.finish_reason is not None or delta.error is not None


class Flight:
    """A sequence between submission and its last delta.

    ``received`` grows with every delta, so that another engine process can go on where the last one stopped. Deltas
    that the reader has not taken are merged into one: a slow reader costs its own tokens and no more.
    """

    __slots__ = ("_deaths", "_pending", "_prompt_logprobs_came", "_waiter", "finishing", "received", "submission")

    def __init__(self, submission: Submission) -> None:
        self.submission = submission
        self.received: list[int] = []
        self.finishing = False
        self._pending: Delta | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._prompt_logprobs_came = False
        self._deaths = 0

    def push(self, delta: Delta) -> None:
        """Take in a delta from the engine."""
        if delta.tokens:
            self.received.extend(delta.tokens)
            self._deaths = 0
        if delta.prompt_logprobs is not None:
            if self._prompt_logprobs_came:
                delta.prompt_logprobs = None
            self._prompt_logprobs_came = True
        self._pending = delta if self._pending is None else merge(self._pending, delta)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def fail(self, error: ErrorInfo) -> None:
        """End the sequence with an error."""
        self.push(Delta(self.submission.id, finish_reason="error", error=error))

    async def take(self) -> Delta:
        """Everything that arrived since the last call; waits when that is nothing. One reader at a time."""
        while self._pending is None:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        delta, self._pending = self._pending, None
        return delta

    @property
    def ended(self) -> bool:
        """Whether the last delta has arrived, taken or not."""
        return self._pending is not None and is_last(self._pending)

    def died(self) -> bool:
        """The engine died with this sequence in flight; returns whether to submit it again."""
        self._deaths += 1
        return self._deaths < MAX_BARREN_DEATHS

    def resumed(self) -> Submission:
        """What to submit now: the request, with every token received so far as already generated."""
        if not self.received:
            return self.submission
        return replace(self.submission, generated=[*self.submission.generated, *self.received])

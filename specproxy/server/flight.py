"""One sequence in flight: what was asked, and what came back so far."""

from __future__ import annotations

import structlog
from msgspec.structs import replace

from specproxy.backend import Deliver
from specproxy.vocabulary import Delta, Submission

MAX_BARREN_DEATHS = 2
"""Engines that may die after they began to work on a sequence and before it got a token; then it is taken for the cause
and not tried again. One that only waited is no suspect."""


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


def is_empty(delta: Delta) -> bool:
    """Whether it says nothing but that work begins."""
    return not (delta.tokens or is_last(delta) or delta.prompt_logprobs is not None or delta.stats is not None)


def is_last(delta: Delta) -> bool:
    """Whether nothing of this sequence follows."""
    return delta.finish_reason is not None or delta.error is not None


class Flight:
    """A sequence between submission and its last delta.

    ``received`` grows with every delta, so that another engine process can go on where the last one stopped.
    """

    __slots__ = ("_begun", "_deaths", "_deliver", "_prompt_logprobs_came", "finishing", "received", "submission")

    def __init__(self, submission: Submission, deliver: Deliver) -> None:
        self.submission = submission
        self.received: list[int] = []
        self.finishing = False
        self._deliver = deliver
        self._prompt_logprobs_came = False
        self._deaths = 0
        self._begun = False

    def push(self, delta: Delta) -> None:
        """Take in a delta from the engine, and hand on what it says of the answer."""
        self._begun = True
        if is_empty(delta):
            return
        if delta.tokens:
            self.received.extend(delta.tokens)
            self._deaths = 0
        if delta.prompt_logprobs is not None:
            if self._prompt_logprobs_came:
                delta.prompt_logprobs = None
            self._prompt_logprobs_came = True
        self._deliver(delta)

    def died(self) -> bool:
        """The engine died with this sequence in flight; returns whether to submit it again."""
        self._deaths += self._begun
        self._begun = False
        if self._deaths < MAX_BARREN_DEATHS:
            return True
        structlog.get_logger().error(
            "a request is given up: engines died over it",
            sequence=self.submission.id,
            deaths=self._deaths,
            route=self.submission.decision.route,
            prompt_tokens=len(self.submission.prompt),
            received=len(self.received),
        )
        return False

    def resumed(self) -> Submission:
        """What to submit now: the request, with every token received so far as already generated."""
        if not self.received:
            return self.submission
        return replace(self.submission, generated=[*self.submission.generated, *self.received])

"""Coupled against greedy drafting: what each guesses right on the same logits, and what each is worth in the engine.

Coupled drafting takes a drafter's token with the noise that the target's own draw will have (Daliri, Musco, Suresh,
arXiv 2408.07978); greedy drafting takes the likeliest one. Offline: along texts that the target samples, at every
position, p of the target and q of the drafter after the request's processors, the drafter having seen exactly the text
(nothing is drafted). In the engine: both ways, paired on every prompt.

Shapes: V ids of the target.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol, cast

import numpy as np
from torch import Tensor

from specproxy.engine.runner import Runner
from specproxy.vocabulary import Submission

if TYPE_CHECKING:
    from specproxy.drafters.base import DraftBatch, DraftContext, Drafter, Memory
    from specproxy.drafters.growth import Source
    from specproxy.engine.assemble import Assembled
    from specproxy.engine.step import Step
    from specproxy.sampling.sampler import Sampler

    class Drawing(Drafter, Source, Protocol):
        """A drafter that draws from logits of its own."""


class Position(NamedTuple):
    """One sampled token: whether the ``coupled`` and the ``greedy`` guess were it, and the chance that rejection
    sampling accepts a draft drawn from q, sum min(p, q)."""

    coupled: bool
    greedy: bool
    rejection: float


@dataclass
class _Moment:
    """What is known of one position before its token is. ``q``, ``p`` float64, over the ids that each knows; ``noise``
    [V], of a sampled text."""

    sampler: Sampler
    q: np.ndarray
    noise: np.ndarray | None
    p: np.ndarray | None = None

    def judge(self, token: int) -> list[Position]:
        """The outcome, the target having drawn ``token``; none where the target's logits were not heard."""
        if self.p is None:
            return []
        shared, greedy = min(len(self.p), len(self.q)), int(self.q.argmax())
        coupled = greedy
        if self.noise is not None:
            with np.errstate(divide="ignore"):
                coupled = int((np.log(self.q) + self.noise[: len(self.q)]).argmax())
        return [Position(coupled == token, greedy == token, float(np.minimum(self.p[:shared], self.q[:shared]).sum()))]


class _Listener:
    """Stands in for a drafter: hears what it would draw from, and drafts nothing. For one sequence at a time."""

    def __init__(self, inner: Drawing) -> None:
        self.name = inner.name
        self.fingerprint = inner.fingerprint
        self.needs = inner.needs
        self.moment: _Moment | None = None
        self._inner = inner

    def prefill(self, ctx: DraftContext) -> None:
        self._inner.prefill(ctx)

    def propose(self, ctx: DraftContext, out: DraftBatch) -> None:
        (row,) = ctx.rows
        position = len(row.tokens)
        if self.needs.hidden and row.hidden.end != position - 1:
            return
        sampler = row.sampler
        noise = None if sampler.noise is None else sampler.noise.row(position).cpu().numpy()
        self.moment = _Moment(sampler, sampler.distribution(self._inner.catch_up([row])[0]), noise)

    def commit(self, ctx: DraftContext) -> None:
        """Nothing was drafted."""

    def release(self, seq_id: str) -> None:
        self._inner.release(seq_id)

    def memory(self) -> Memory:
        return self._inner.memory()

    def take(self) -> _Moment | None:
        """What the last step was about, once."""
        moment, self.moment = self.moment, None
        return moment


class _Tap(Runner):
    """The engine's runner; what the target says of a listener's position is noted."""

    def __init__(self, runner: Runner, listener: _Listener) -> None:
        super().__init__(runner.model, runner.kv, runner.rules, runner.threads)
        self._listener = listener

    def run(self, step: Step, hidden: Sequence[int] = ()) -> tuple[Tensor, list[Tensor]]:
        logits, taps = super().run(step, hidden)
        moment = self._listener.moment
        if moment is not None:
            moment.p = moment.sampler.distribution(logits[0])
        return logits, taps


def listen(assembled: Assembled, drafter: str, submissions: Sequence[Submission]) -> list[list[Position]]:
    """Let the engine answer each submission, whose decision is a chain of one by ``drafter``, without drafts; what
    would have been guessed, position by position: all but the first token, which follows from the prompt's own forward,
    and the last, for which the engine asks nobody. Call on the engine's thread."""
    engine, drafters = assembled.engine, assembled.engine.drafting.drafters
    runner, inner = engine.runner, drafters[drafter]
    listener = _Listener(cast("Drawing", inner))
    drafters[drafter], engine.runner = listener, _Tap(runner, listener)
    try:
        return [_follow(assembled, listener, submission) for submission in submissions]
    finally:
        drafters[drafter], engine.runner = inner, runner


def _follow(assembled: Assembled, listener: _Listener, submission: Submission) -> list[Position]:
    engine, heard = assembled.engine, list[Position]()
    engine.submit(submission)
    while not engine.idle:
        for delta in engine.step():
            moment = listener.take()
            if moment is not None and delta.tokens:
                heard += moment.judge(delta.tokens[0])
    return heard

"""What a step or a round said becomes part of answers, token by token, until one of them ends its answer."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Rows
from typing import TYPE_CHECKING

from torch import Tensor

from specproxy.engine.controller import Controller
from specproxy.engine.report import finish_reason, finished_stats
from specproxy.engine.scheduler import Scheduler
from specproxy.engine.sequence import Sequence
from specproxy.engine.verify import NO_TOKEN
from specproxy.errors import EngineFailed
from specproxy.models.base import ModelSpec
from specproxy.sampling.sampler import token_logprobs
from specproxy.vocabulary import Delta, FinishReason

if TYPE_CHECKING:
    from specproxy.engine.faults import Faults


class Answers:
    """Appends tokens to sequences and says what came of it. ``faults``: those that a test put in."""

    def __init__(
        self,
        spec: ModelSpec,
        scheduler: Scheduler,
        controller: Controller,
        vocab_size: int,
        clock: Callable[[], float],
    ) -> None:
        self.faults: Faults | None = None
        self._eos = frozenset(spec.eos_token_ids)
        self._max_len = spec.max_len
        self._scheduler = scheduler
        self._controller = controller
        self._vocab = vocab_size
        self._clock = clock

    def commit(self, s: Sequence, tokens: Rows[int], logits: Tensor, rows: Rows[int]) -> Delta:
        """Append tokens one by one until one of them ends the answer. ``rows`` are their rows in ``logits`` [T, V]."""
        if tokens[0] == NO_TOKEN:
            return self._fail(s)
        if self.faults is not None:
            tokens = self.faults.flip(tokens)
        params, reason = s.submission.params, None
        kept: list[int] = []
        for token in tokens:
            if token == NO_TOKEN:  # the next step begins at this row and fails the sequence
                break
            kept.append(token)
            s.tokens.append(token)
            reason = finish_reason(s, token, self._eos, self._max_len)
            if reason is not None:
                break
        s.sampler.advance(kept)
        s.computed = min(s.computed, len(s.tokens) - 1)
        delta = Delta(s.id, kept)
        if params.logprobs is not None:
            delta.logprobs = token_logprobs(logits[list(rows[: len(kept)])], kept, params.logprobs, self._vocab)
        if s.num_output == len(kept):
            s.stats.first_token_s = self._clock() - s.arrival
            if params.prompt_logprobs is not None:
                delta.prompt_logprobs = s.prompt_logprobs
        s.stats.steps += 1
        if reason is not None:
            return self.finish(s, delta, reason)
        self._scheduler.publish(s)
        return delta

    def finish(self, s: Sequence, delta: Delta, reason: FinishReason) -> Delta:
        """The answer ends with ``delta``."""
        delta.finish_reason = reason
        delta.stop_token = delta.tokens[-1] if reason == "stop" else None
        delta.stats = finished_stats(s)
        self._controller.observe_answer(s.group, s.num_output)
        self._scheduler.remove(s)
        return delta

    def _fail(self, s: Sequence) -> Delta:
        """The target gave no number for this sequence's next token; nobody else's answer is touched."""
        fault, code = s.sampler.fault, "grammar_failed"
        if not fault:
            fault, code = "the target's logits are not finite for this request", "bad_logits"
        error = EngineFailed(fault, code=code)
        self._scheduler.remove(s)
        return Delta(s.id, finish_reason="error", error=error.info(), stats=finished_stats(s))

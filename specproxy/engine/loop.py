"""The engine's loop: admit, prefill, draft, step, walk, commit, emit. Speculation off is K = 0 through the same code.

A token is a pure function of the target's logits at its position, the request's parameters and its seed; nothing in
this file (who runs with whom, who drafts, who was preempted) can change one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from collections.abc import Sequence as Rows
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from specproxy.drafters.base import Drafter
from specproxy.engine.answers import Answers
from specproxy.engine.controller import Controller
from specproxy.engine.drafting import Drafting
from specproxy.engine.drafts import Draft
from specproxy.engine.flying import Flying
from specproxy.engine.report import EngineTimes, finished_stats
from specproxy.engine.runner import Runner
from specproxy.engine.scheduler import Scheduler
from specproxy.engine.sequence import Sequence
from specproxy.engine.step import Step, prefill_step
from specproxy.engine.turns import Turns
from specproxy.engine.verify import add_rows, keep_path, sample_finite, split
from specproxy.errors import InvalidRequest
from specproxy.kernels.walk import walk
from specproxy.sampling.sampler import Row, Sampler, token_logprobs
from specproxy.structured.grammars import Grammars
from specproxy.vocabulary import Decision, Delta, Submission

if TYPE_CHECKING:
    from specproxy.engine.rounds import Rounds


class Engine:
    """Sequences in, deltas out. One thread; ``clock`` in seconds."""

    def __init__(
        self,
        runner: Runner,
        scheduler: Scheduler,
        drafting: Drafting,
        controller: Controller,
        vocab_size: int,
        clock: Callable[[], float],
        grammars: Grammars,
        rounds: Rounds | None = None,
    ) -> None:
        """``grammars``: of the target's vocabulary. ``rounds``: where the target's path can be captured with drafts and
        all."""
        self.runner = runner
        self.scheduler = scheduler
        self.drafting = drafting
        self.times = EngineTimes()
        self._controller = controller
        self._vocab = vocab_size
        self.grammars = grammars
        self._clock = clock
        self._early: list[Delta] = []
        self._turns = Turns()
        self.answers = Answers(runner.model.spec, scheduler, controller, vocab_size, clock)
        self.flying: Flying | None = None
        if rounds is not None:
            self.flying = Flying(rounds, scheduler, drafting, controller, self.answers, self.times, clock)

    @property
    def rounds(self) -> Rounds | None:
        """Of a target whose path can be captured with drafts and all."""
        return None if self.flying is None else self.flying.rounds

    @property
    def idle(self) -> bool:
        """Whether a step would do nothing."""
        return self.scheduler.idle and not self._early

    def submit(self, submission: Submission) -> None:
        """Queue a sequence; what is wrong with it comes back as its only delta."""
        limit = min(self.runner.model.spec.max_len, self.scheduler.pool.total * self.scheduler.pool.page_size)
        ids = [*submission.prompt, *submission.generated]
        try:
            if not submission.prompt or len(ids) > limit or not all(0 <= i < self._vocab for i in ids):
                raise InvalidRequest(f"expected a prompt of 1 to {limit} token ids, each below {self._vocab}")
            sampler = Sampler(
                submission.params,
                submission.seed,
                submission.choice,
                submission.prompt,
                self._vocab,
                self.runner.model.spec.eos_token_ids,
                torch.device(self.runner.model.spec.device),
                self.grammars.matcher(submission.params),
            )
        except InvalidRequest as error:
            self._early.append(Delta(submission.id, finish_reason="error", error=error.info()))
            return
        sampler.advance(submission.generated)
        self.scheduler.add(Sequence(submission, submission.decision, sampler, self._clock(), ids))

    def abort(self, seq_id: str, report: bool = False) -> None:
        """Forget a sequence; with ``report`` its counts come as one last delta."""
        sequence = self.scheduler.find(seq_id)
        if sequence is not None:
            if report:
                self._early.append(Delta(seq_id, finish_reason="abort", stats=finished_stats(sequence)))
            self.scheduler.remove(sequence)

    def update(self, decision: Decision, seq_id: str | None, route: str | None) -> None:
        """Give running sequences a new decision, from the next step on."""
        for sequence in self.scheduler.all():
            if sequence.id == seq_id or (route is not None and sequence.decision.route == route):
                sequence.decision = decision

    def step(self) -> list[Delta]:
        """One prefill chunk or one decode step of everyone who can; the two take turns (``Turns``), so that neither
        waits for long."""
        deltas, self._early = self._early, []
        self.scheduler.choose()
        if self.flying is not None and self.flying.aloft is not None:
            landed = self._fly_on(self.flying)
            self._turns.decoded(landed)
            return deltas + landed
        now = self._clock()
        for sequence in self.scheduler.admit():
            sequence.stats.queued_s = now - sequence.arrival
        prompt = self.scheduler.next_prefill()
        decoding = self.scheduler.decoding()
        if prompt is not None and not prompt.announced:
            prompt.announced = True  # told before it is touched: should that be our end, it is known whose doing it was
            return [*deltas, Delta(prompt.id)]
        if prompt is not None and self._turns.prompts_turn(decoding=bool(decoding)):
            return deltas + self._prefill(prompt)
        decoded = self._decode(decoding)
        self._turns.decoded(decoded)
        return deltas + decoded

    def _prefill(self, s: Sequence) -> list[Delta]:
        """The next chunk of a prompt; the last one samples the first token (or finds it already known)."""
        if not s.computed:
            self.scheduler.share_prefix(s)
        rows = self.runner.rules.prefill_rows
        base = s.computed - s.computed % rows
        end = min(base + rows, s.num_prompt)
        if not self.scheduler.reserve(s, end):
            return []
        self.scheduler.began([s])
        began = self._clock()
        step = prefill_step(s.tokens, base, s.computed, end, s.table, self.runner.kv, rows, self.runner.rules.trim)
        if s.submission.params.prompt_logprobs is not None:
            self._score_prompt(s, step, end)
        hidden = self.drafting.loaded.hidden([s])
        logits, taps = self.runner.run(step, hidden)
        if hidden:
            first = step.positions[0]
            states = dict(zip(hidden, taps, strict=True))
            self.drafting.loaded.feed(s, s.computed, states, slice(s.computed - first, end - first))
        if self.flying is not None:
            self.drafting.loaded.begin(s)
        s.computed = end
        self.scheduler.publish(s)
        deltas = [] if end < s.num_prompt or s.num_output else self._first(s, logits)
        seconds = self._clock() - began
        self.times.add("prefill", seconds)
        s.stats.device_s += seconds
        return deltas

    def _first(self, s: Sequence, logits: Tensor) -> list[Delta]:
        """The first token of an answer, from the logits behind its prompt."""
        if s.submission.params.max_tokens == 0:
            return [self.answers.finish(s, Delta(s.id, prompt_logprobs=s.prompt_logprobs), "length")]
        return [self.answers.commit(s, sample_finite(logits, [Row(s.sampler, (), s.num_prompt)]), logits, [0])]

    def _score_prompt(self, s: Sequence, step: Step, end: int) -> None:
        """Logprobs of the prompt's own tokens, from a run of its own: the sampled row keeps its product's width."""
        top = s.submission.params.prompt_logprobs or 0
        first, last = step.positions[0], min(end, s.num_prompt - 1)
        every = replace(step, sample=list(range(s.computed - first, last - first)))
        if every.sample:
            logits, _ = self.runner.run(every)
            s.prompt_logprobs += token_logprobs(logits, s.tokens[s.computed + 1 : last + 1], top, self._vocab)

    def _decode(self, sequences: list[Sequence]) -> list[Delta]:
        """Draft, verify, accept, commit."""
        sequences = self._with_pages(sequences)
        if not sequences:
            return []
        self.scheduler.began(sequences)
        began = self._clock()
        self.runner.threads.enter(1)
        plan = self.drafting.plan(sequences, self._budget)
        if self.flying is not None and self.flying.start(plan):
            return []
        drafts = self.drafting.draft(plan, self.rounds)
        drafted = self._clock()
        drafting = [s for s, draft in zip(sequences, drafts, strict=True) if draft.tokens]
        for s in drafting:
            s.stats.device_s += (drafted - began) / len(drafting)
        deltas = []
        for part, part_drafts in split(sequences, drafts, self.runner.rules.max_rows):
            deltas += self._verify(part, part_drafts)
        self.times.add("draft", drafted - began)
        return deltas

    def _fly_on(self, flying: Flying) -> list[Delta]:
        """The next round of those who fly, or the end of their last one; then the device starts on the next one before
        what the last one said is sent anywhere."""
        if flying.may_go_on():
            return flying.go_on(self.drafting.plan(self.scheduler.decoding(), self._budget))
        deltas = flying.land()
        sequences = [] if self.scheduler.due else self._with_pages(self.scheduler.decoding())
        if sequences and flying.start(self.drafting.plan(sequences, self._budget)):
            self.scheduler.began(sequences)
        return deltas

    def add(self, drafter: Drafter) -> None:
        """A drafter was loaded, perhaps in place of one of the same name."""
        self.forget(drafter.name)
        self.drafting.loaded.add(drafter)

    def forget(self, drafter: str) -> None:
        """A drafter is unloaded; rows that used it go on without."""
        self.land()
        if self.rounds is not None:
            self.rounds.forget(drafter)
        for sequence in self.scheduler.all():
            sequence.drafts.pop(drafter, None)
            sequence.begun.discard(drafter)
        self.drafting.forget(drafter)

    def land(self) -> None:
        """Commit what is on its way; its deltas come with the next step's."""
        if self.flying is not None:
            self._early += self.flying.land()

    def _with_pages(self, sequences: list[Sequence]) -> list[Sequence]:
        """Those that have a page for their next token; making room may have preempted some."""
        for s in sequences:
            if s in self.scheduler.running:
                self.scheduler.reserve(s, len(s.tokens))
        return [s for s in sequences if s in self.scheduler.running]

    def _budget(self, s: Sequence, wanted: int) -> int:
        """Nodes that the answer can still take, the widest step holds, the context allows and there are pages for."""
        known = len(s.tokens)
        wanted = min(
            wanted,
            s.submission.params.max_tokens - s.num_output - 1,
            self.runner.rules.max_rows - 1,
            self.runner.model.spec.max_len - known - 1,
        )
        return self.scheduler.try_reserve(s, known + wanted) - known if wanted > 0 else 0

    def _verify(self, sequences: Rows[Sequence], drafts: Rows[Draft]) -> list[Delta]:
        """One step of the target over all rows; the walk; what it committed."""
        began = self._clock()
        step, rows, first = Step("decode"), [], []
        for s, draft in zip(sequences, drafts, strict=True):
            first.append(len(step.sample))
            rows += add_rows(step, s, draft, self.runner.rules.max_rows, self.runner.kv.page_size)
        hidden = self.drafting.loaded.hidden(sequences)
        logits, taps = self.runner.run(step, hidden)
        states = dict(zip(hidden, taps, strict=True))
        sampled = sample_finite(logits, rows) if rows else []
        seconds = self._clock() - began
        self._controller.observe_step(len(step.ids), seconds, any(span.words is not None for span in step.spans))
        self.times.add("decode", seconds)
        deltas = []
        for s, draft, at, span in zip(sequences, drafts, first, step.spans, strict=True):
            s.stats.device_s += seconds * span.count / len(step.ids)
            replayed = min(len(s.pending), self.runner.rules.max_rows)
            if len(s.pending) > replayed:
                self._feed(s, states, span.start, replayed, ())
                s.computed += replayed
                continue
            nodes = len(draft.tokens)
            accepted, bonus = walk(draft.tokens, draft.parents, nodes, sampled[at : at + 1 + nodes])
            self._feed(s, states, span.start, replayed, accepted)
            keep_path(self.runner.kv, s, draft, replayed, accepted)
            tokens = [*(draft.tokens[i] for i in accepted), bonus]
            self.drafting.settle(s, draft, accepted, tokens)
            deltas.append(self.answers.commit(s, tokens, logits, [at, *(at + 1 + i for i in accepted)]))
        return deltas

    def _feed(self, s: Sequence, states: Mapping[int, Tensor], start: int, replayed: int, accepted: Rows[int]) -> None:
        """Give drafters the hidden states of what is committed: of ``replayed`` rows from ``start`` on, and behind
        them of the accepted nodes."""
        if states:
            rows = [*range(start, start + replayed), *(start + replayed + node for node in accepted)]
            self.drafting.loaded.feed(s, s.computed, states, rows)

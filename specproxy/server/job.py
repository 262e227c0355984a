"""One request, decided: what is generated, on which backend, and how the answer grows."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import structlog
from aiohttp import web

from specproxy.backend import Backend
from specproxy.policy.facts import Facts, extract_facts
from specproxy.policy.policy import Verdict
from specproxy.server.accounting import Account
from specproxy.server.api import Answer, AnswerMeta, ParsedRequest, draw_seed
from specproxy.server.capture import OPT_OUT, Capture, Transcript
from specproxy.server.disclosure import decision_headers, exactness_of, what_happened
from specproxy.server.flight import is_last
from specproxy.server.gating.watch import Watch
from specproxy.server.generation import Generation
from specproxy.server.state import KEY_ID, Served, State
from specproxy.vocabulary import Delta, SequenceStats, Submission

_ID_PREFIX = {"chat": "chatcmpl-", "completions": "cmpl-"}


@dataclass
class Job:
    """A decided request. ``submissions[i]`` is choice i of ``answer``; ``deadline`` on the perf_counter clock.

    ``watch``: what the gate learns of it; ``capture``, ``transcript``: where the answer is to be kept for training.
    """

    backend: Backend
    submissions: Sequence[Submission]
    answer: Answer
    account: Account
    headers: dict[str, str]
    deadline: float | None
    watch: Watch
    capture: Capture | None = None
    transcript: Transcript | None = None
    stats: dict[int, SequenceStats] = field(default_factory=dict)

    @property
    def remaining_s(self) -> float | None:
        """Seconds until the deadline."""
        return None if self.deadline is None else max(0.0, self.deadline - time.perf_counter())

    def take(self, generation: Generation, index: int, delta: Delta) -> bytes:
        """Add a delta to the answer; the bytes to stream for it. Raises RequestError when it reports one."""
        if delta.stats is not None:
            self.stats[index] = delta.stats
        pushed = self.answer.push(index, delta)
        self.account.tokens(index, pushed.tokens)
        self.watch.choices[index].add(delta, pushed.tokens, pushed.done)
        if self.transcript is not None:
            self.transcript.add(index, delta.tokens[: pushed.tokens], pushed.text)
        if pushed.done and not is_last(delta):
            generation.finish(index)
        return pushed.data

    def finish(self) -> bytes:
        """The rest of the stream, or the body. Fills in the record."""
        self.book()
        record = self.account.record
        record.finish_reasons = list(self.answer.finish_reasons)
        record.completion_tokens = self.answer.completion_tokens
        record.structured = list(self.answer.verdicts)
        record.tool_calls = list(self.answer.call_verdicts)
        for fault in self.answer.call_faults:
            structlog.get_logger().warning("tool call broken", request_id=record.request_id, fault=fault)
        return self.answer.finish(self.disclose())

    def book(self) -> None:
        """Put what the engine reported into the record; once, however the request ends."""
        self.account.add_stats(self.stats.values())
        self.account.record.cached_tokens = self.answer.cached_tokens
        self.stats.clear()

    def keep(self) -> None:
        """The answer is out: keep it, where that was decided and nothing went wrong on the way."""
        if self.capture is not None and self.transcript is not None and self.account.record.error is None:
            self.transcript.finish(self.account.record)
            self.capture.offer(self.transcript)

    def disclose(self) -> dict[str, Any]:
        """The ``specproxy`` object."""
        return what_happened(self.account.record)


@dataclass(frozen=True)
class Origin:
    """What the connection says of a request. ``serial`` is ours and unique, whatever id the client sent."""

    headers: dict[str, str]
    key_id: str
    serial: str


def origin_of(request: web.Request) -> Origin:
    """What the connection of a request says, and a serial of ours."""
    return Origin(dict(request.headers), request[KEY_ID], uuid.uuid4().hex)


@dataclass(frozen=True)
class Decided:
    """A request's facts, and what the policy says of them."""

    facts: Facts
    verdict: Verdict


def decide(
    state: State, path: str, origin: Origin, body: Mapping[str, Any], prompt_tokens: int | None = None
) -> Decided:
    """Let the policy decide. Raises InvalidRequest where a limit of the route is exceeded, or an override is not
    allowed."""
    facts = extract_facts(
        path,
        origin.headers,
        body,
        api_key=origin.key_id,
        prompt_tokens=prompt_tokens,
        load=state.admission.depth,
    )
    return Decided(facts, state.gate.decide(facts))


def plan(
    state: State, served: Served, parsed: ParsedRequest, account: Account, origin: Origin, decided: Decided
) -> Job:
    """Prepare everything that follows from what was decided."""
    facts, verdict = decided.facts, decided.verdict
    decision = verdict.decision
    hello = served.hello
    seed = parsed.seed if parsed.seed is not None else draw_seed()
    account.decided(decision, model=parsed.model, seed=seed, stream=parsed.stream, prompt_tokens=parsed.prompt_tokens)
    account.record.exactness = exactness_of(decision, hello)
    account.record.key_id = origin.key_id
    identity = _ID_PREFIX[parsed.endpoint] + origin.serial
    timeout_s = verdict.limits.timeout_s
    submissions = parsed.submissions(
        decision, seed, salt=origin.key_id, id_prefix=origin.serial, default_max_tokens=verdict.limits.max_tokens
    )
    capture = None if OPT_OUT in facts.headers else state.captures.of(verdict.capture)
    return Job(
        backend=state.backend,
        submissions=submissions,
        answer=parsed.answer(AnswerMeta(identity, int(time.time()), served.fingerprint)),
        account=account,
        headers=decision_headers(decision, seed, hello),
        deadline=None if timeout_s is None else account.started + timeout_s,
        watch=state.gate.watch(facts, submissions, parsed.stop, hello, account),
        capture=capture,
        transcript=None if capture is None else Transcript(parsed, submissions, served.fingerprint),
    )

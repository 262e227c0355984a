"""Finished answers as evidence: what each arm's speed, latency, cost and failures say of a candidate and a route."""

from __future__ import annotations

import math
from collections import defaultdict, deque
from collections.abc import Callable

from msgspec import Struct

from specproxy.gate.evidence import Comparison
from specproxy.gate.statistics import Mean
from specproxy.server.gating.book import Book
from specproxy.server.gating.decider import ACTIVE, CANDIDATE, HOLD_OUT
from specproxy.vocabulary import RequestRecord

PARTNER_S = 600.0
"""Longest that an answer waits for one of another arm to be compared with: load and traffic change over a day."""

MAX_WAITING = 64
"""Answers of one stratum and arm that wait for a partner."""

LEAST_TOKENS = 4
"""Tokens after the first, below which a speed is mostly noise."""


class Sample(Struct, frozen=True):
    """A finished answer. ``tokens_per_s``: after the first token, ``None`` where there are too few; ``itl_p95_s``: of
    its inter-token times; ``cost_s``: device seconds, its share of the engine's steps by rows;
    ``load``: sequences in flight; ``valid``: of its choices that came to their end, whether each has the schema that it
    had to have; ``called``: of its tool calls that were not cut short, whether each is well formed; ``tokens`` and
    ``steps``: answered, and of the target that made them."""

    route: str
    revision: str
    arm: str
    prompt_tokens: int
    load: float
    ttft_s: float | None
    tokens_per_s: float | None
    itl_p95_s: float | None
    cost_s: float | None
    failed: bool = False
    tokens: int = 0
    steps: int = 0
    valid: tuple[bool, ...] = ()
    called: tuple[bool, ...] = ()

    @property
    def stratum(self) -> tuple[int, int]:
        """Answers of equal load and prompt length, to a factor of two."""
        return (int(self.load).bit_length(), self.prompt_tokens.bit_length())


def sample_of(record: RequestRecord, *, tokens_per_s: float | None, itl_p95_s: float | None, load: float) -> Sample:
    """The sample that a record makes. Only failures of the engine count as failed."""
    shared = max(1.0, load)
    enough = record.completion_tokens > LEAST_TOKENS
    return Sample(
        record.route,
        record.revision,
        record.arm,
        record.prompt_tokens,
        shared,
        record.ttft_s,
        tokens_per_s if enough else None,
        itl_p95_s if enough else None,
        record.device_s or None,
        failed=record.status == 500,
        tokens=record.completion_tokens,
        steps=record.steps,
        valid=tuple(verdict == "valid" for verdict in record.structured if verdict != "truncated"),
        called=tuple(verdict == "well-formed" for verdict in record.tool_calls if verdict != "truncated"),
    )


class Partners:
    """Finds each answer one of the other arm, of the same stratum and about the same time; each is used once."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._waiting: dict[tuple[str, tuple[int, int]], deque[tuple[float, Sample]]] = defaultdict(
            lambda: deque(maxlen=MAX_WAITING)
        )

    def meet(self, sample: Sample, first: str, second: str) -> tuple[Sample, Sample] | None:
        """A pair of the arms ``first`` and ``second``, or ``None`` where the sample has to wait."""
        now = self._clock()
        other = second if sample.arm == first else first
        queue = self._waiting[other, sample.stratum]
        while queue and now - queue[0][0] > PARTNER_S:
            queue.popleft()
        if not queue:
            self._waiting[sample.arm, sample.stratum].append((now, sample))
            return None
        found = queue.popleft()[1]
        return (sample, found) if sample.arm == first else (found, sample)


class Samples:
    """Books finished answers on the candidates of their routes, and on the speed-up against the hold-out."""

    def __init__(self, book: Book) -> None:
        self._book = book
        self._live: dict[tuple[str, str], Partners] = {}
        self._honest: dict[str, Partners] = {}
        self.speedup: dict[str, tuple[str, Mean]] = {}

    def take(self, sample: Sample) -> None:
        """A request has ended."""
        if sample.arm in (ACTIVE, HOLD_OUT):
            self._against_plain(sample)
        change = self._book.change
        if change is None or sample.arm not in (ACTIVE, CANDIDATE):
            return
        for member in change.group_of(sample.route):
            if member.route == sample.route and member.state.phase == "canary":
                self._book_live(member.evidence.live, sample, (member.route, member.revision))
                member.dirty = True

    def _book_live(self, live: Comparison, sample: Sample, name: tuple[str, str]) -> None:
        candidate = sample.arm == CANDIDATE
        live.count(candidate=candidate)
        if sample.failed:
            live.engine_errors += candidate
            return
        (live.candidate_work if candidate else live.control_work).add(sample.tokens, sample.steps)
        for metric, value in (("ttft_p95", sample.ttft_s), ("itl_p95", sample.itl_p95_s)):
            if value is not None:
                live.tails[metric].add(value, candidate=candidate)
        for good in sample.valid:
            live.rates["structured"].add(candidate=candidate, good=good)
        for good in sample.called:
            live.rates["tools"].add(candidate=candidate, good=good)
        if sample.tokens_per_s is None or sample.cost_s is None:
            return
        if name not in self._live:
            self._live = {other: kept for other, kept in self._live.items() if other[0] != name[0]}
            self._live[name] = Partners(self._book.clock)
        pair = self._live[name].meet(sample, CANDIDATE, ACTIVE)
        if pair is not None:
            book_speeds(live, *pair)
            book_costs(live, *pair)

    def _against_plain(self, sample: Sample) -> None:
        """The honest speed-up now: what serves against the plain hold-out."""
        active = self._book.active.get(sample.route)
        if sample.tokens_per_s is None or active is None or active.revision != sample.revision:
            return
        revision, mean = self.speedup.get(sample.route, ("", Mean()))
        if revision != active.revision:
            mean = Mean()
            self._honest.pop(sample.route, None)
        pair = self._honest.setdefault(sample.route, Partners(self._book.clock)).meet(sample, ACTIVE, HOLD_OUT)
        if pair is not None and pair[0].tokens_per_s and pair[1].tokens_per_s:
            mean.add(math.log(pair[0].tokens_per_s / pair[1].tokens_per_s))
        self.speedup[sample.route] = (active.revision, mean)


def book_speeds(seen: Comparison, candidate: Sample, control: Sample) -> None:
    """Add what a pair says of speed."""
    if candidate.tokens_per_s and control.tokens_per_s:
        seen.add_speeds(candidate.tokens_per_s, control.tokens_per_s)


def book_costs(seen: Comparison, candidate: Sample, control: Sample) -> None:
    """Add what a pair says of cost."""
    if candidate.cost_s and control.cost_s:
        seen.add_costs(candidate.cost_s, control.cost_s)

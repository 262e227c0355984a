"""What audits find, the engine in this process: answers until a fault is noticed, and near-ties where there is none.

A fault is put in (``engine/faults.py``), answers are drawn at temperature 0.8, each pass over the prompts with other
seeds, and every one is audited, until one is a hard mismatch. A flip of an accepted token at random, one in N, is to be
found in the first answer that has one: of answers with n accepted tokens, after 1 / (1 - (1 - 1/N)^n) on average.

Near-ties: the same answers, decoded plainly and drafted, are audited without a fault, and beside them the stock model
is compared with itself, in chunks of another length.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import msgspec
import numpy as np
from msgspec import Struct

from specproxy.bench.arms import AUTO, Arm, parse_arm
from specproxy.bench.client import Answer
from specproxy.bench.records import Record, at_temperature
from specproxy.bench.stats import Share, pooled_share
from specproxy.bundle import AuditBundle, AuditResult, Tolerance, excess
from specproxy.vocabulary import Submission
from specproxy.wire.frames import Audit

if TYPE_CHECKING:
    from specproxy.bench.alone import AloneEngine
    from specproxy.engine.assemble import Assembled
    from specproxy.engine.audits import Audits
    from specproxy.engine.faults import Injection, Wanted

AT_ONCE = 8
"""Answers that are drawn together, and then audited."""

FAULTS = (("flip_token", 10_000), ("flip_token", 1_000), ("kernel", 1), ("cache", 100), ("mask", 1))
"""Kinds, and how many opportunities there are to one fault. A wrong kernel or mask is wrong whenever it runs."""

SEEDED = "flip_token"
"""The kind that strikes at random, and is looked for with several seeds."""

OTHER_CHUNK = 24
"""Tokens of a chunk in which the stock model is compared with itself."""


class Power(Struct, frozen=True):
    """One fault. ``answers``: audited in all, over ``seeds``; ``found``: seeds whose search a hard mismatch ended, each
    after ``until`` answers. ``expected``: answers that this should take on average; 0: nothing is expected, as what the
    fault does is not known beforehand. ``struck``: how often it did, further answers of the last group included.
    ``accepted``: drafted tokens that were; ``explained``: near-ties, and how many rounding alone gives."""

    fault: str
    seeds: int
    found: int
    until: list[int]
    answers: int
    struck: int
    accepted: int
    expected: float
    explained: int
    explained_expected: float

    @property
    def excess(self) -> float:
        """The chance of so many near-ties, or more, where rounding alone decides them."""
        return excess(self.explained, self.explained_expected)

    @property
    def missed(self) -> bool:
        """Whether it was there and was not found."""
        return self.struck > 0 and not self.found


class Ties(Struct, frozen=True):
    """Two computations of the same answers without a fault. ``explained`` of ``tokens`` differ and are near-ties, in
    ``affected`` of ``answers``; ``expected``: how many rounding gives; ``share``: explained tokens by answer."""

    what: str
    answers: int
    tokens: int
    affected: int
    explained: int
    expected: float
    hard: int
    share: Share


def measurements(seeds: int) -> int:
    """How often ``done`` will be called."""
    return 3 + sum(seeds if kind == SEEDED else 1 for kind, _ in FAULTS)


class Auditor:
    """Draws answers from an engine in this process and audits them on its thread."""

    def __init__(self, engine: AloneEngine, max_tokens: int) -> None:
        self._engine = engine
        self._max_tokens = max_tokens
        self._audits: Audits = engine.work(_make_audits)

    @property
    def tolerance(self) -> Tolerance | None:
        """What is taken for rounding."""
        return self._audits.tolerance

    def answers(self, records: Sequence[Record], arm: Arm, salt: str) -> list[tuple[Submission, Answer]]:
        """What ``records`` get, several at a time."""
        decision = arm.decision([info.name for info in self._engine.drafters])
        submissions = [self._engine.submission(record, decision, salt, self._max_tokens) for record in records]
        answers = asyncio.run(self._engine.answer(submissions, AT_ONCE))
        return list(zip(submissions, answers, strict=True))

    def audit(self, asked: Sequence[tuple[Submission, Answer]]) -> list[AuditResult]:
        """Their results, in order."""
        return self._engine.work(lambda assembled: self._run(assembled, asked))

    def inject(self, wanted: Wanted) -> Injection:
        """Put a fault into the engine."""
        from specproxy.engine.faults import inject

        return self._engine.work(lambda assembled: inject(assembled, wanted))

    def undo(self, injection: Injection) -> None:
        """Take it out."""
        self._engine.work(lambda _: injection.undo())

    def stock_against_itself(self, asked: Sequence[tuple[Submission, Answer]]) -> list[tuple[int, int]]:
        """Of each answer: tokens that the stock model draws otherwise in chunks of ``OTHER_CHUNK``, and all."""
        from specproxy.engine.tolerance import drawn_otherwise

        def compare(assembled: Assembled) -> list[tuple[int, int]]:
            bundles = [_bundle(assembled, *one) for one in asked]
            return [(drawn_otherwise(self._audits.target, b, OTHER_CHUNK), len(b.output)) for b in bundles]

        return self._engine.work(compare)

    def _run(self, assembled: Assembled, asked: Sequence[tuple[Submission, Answer]]) -> list[AuditResult]:
        for submission, answer in asked:
            self._audits.add(Audit(_bundle(assembled, submission, answer)))
        found: dict[str, AuditResult] = {}
        while self._audits.waiting or len(found) < len(asked):
            found |= {result.request_id: result for result in self._audits.step(busy=False)}
        return [found[submission.id] for submission, _ in asked]


def measure_power(
    records: Sequence[Record], auditor: Auditor, seeds: int, most: int, done: Callable[[str], None]
) -> list[Power]:
    """Every fault, looked for in at most ``most`` answers a seed, the controller choosing who drafts them."""
    return [power_of(records, auditor, kind, every, seeds, most, done) for kind, every in FAULTS]


def power_of(
    records: Sequence[Record],
    auditor: Auditor,
    kind: str,
    every: int,
    seeds: int,
    most: int,
    done: Callable[[str], None],
) -> Power:
    """One fault; where it strikes at random, over ``seeds`` seeds, else once."""
    from specproxy.engine.faults import Wanted

    wanted = [Wanted(kind, every, seed) for seed in range(seeds)] if kind == SEEDED else [Wanted(kind, every)]
    searches = []
    for one in wanted:
        searches.append(_search(records, auditor, one, most))
        done(one.text)
    accepted = [count for search in searches for count in search.accepted]
    chances = np.asarray([1 - (1 - 1 / every) ** count for count in accepted], np.float64)
    results = [result for search in searches for result in search.results]
    return Power(
        fault=wanted[0].text,
        seeds=len(wanted),
        found=sum(search.found for search in searches),
        until=[len(search.results) for search in searches if search.found],
        answers=len(results),
        struck=sum(search.struck for search in searches),
        accepted=sum(accepted),
        expected=float(1 / chances.mean()) if kind == SEEDED and chances.any() else 0.0,
        explained=sum(result.explained for result in results),
        explained_expected=sum(result.expected for result in results),
    )


class _Search(Struct):
    """Results up to the first hard mismatch, and accepted tokens of those answers."""

    results: list[AuditResult] = []
    accepted: list[int] = []
    struck: int = 0
    found: bool = False


def _search(records: Sequence[Record], auditor: Auditor, wanted: Wanted, most: int) -> _Search:
    """Answers one group after another, until one is found."""
    search, fault = _Search(), auditor.inject(wanted)
    try:
        for group in _groups(records, wanted.seed or 0, most):
            asked = auditor.answers(group, parse_arm(AUTO), f"{wanted.kind}#{wanted.seed}")
            for result, (_, answer) in zip(auditor.audit(asked), asked, strict=True):
                search.results.append(result)
                search.accepted.append(answer.accepted)
                search.found = result.verdict == "hard"
                if search.found:
                    break
            if search.found:
                break
        search.struck = fault.turns.struck
    finally:
        auditor.undo(fault)
    return search


def _groups(records: Sequence[Record], seed: int, most: int) -> Iterator[list[Record]]:
    """The prompts over and over, each time with other seeds, ``AT_ONCE`` in a group."""
    left, turn = most, 0
    while left > 0:
        those = [reseeded(record, f"{seed}#{turn}") for record in records[:left]]
        for start in range(0, len(those), AT_ONCE):
            yield those[start : start + AT_ONCE]
        left, turn = left - len(those), turn + 1


def reseeded(record: Record, salt: str) -> Record:
    """The same prompt at temperature 0.8 with another seed."""
    sampled = at_temperature(record, 0.8)
    return msgspec.structs.replace(sampled, seed=zlib.crc32(f"{record.id} {salt}".encode()))


def measure_ties(
    records: Sequence[Record], auditor: Auditor, arms: Sequence[Arm], done: Callable[[str], None]
) -> list[Ties]:
    """Answers to ``records`` as each of ``arms`` decodes them, audited; and the stock model against itself over those
    of the first."""
    found: list[Ties] = []
    first: list[tuple[Submission, Answer]] = []
    for arm in arms:
        asked = auditor.answers(records, arm, f"ties#{arm.name}")
        first = first or asked
        results = auditor.audit(asked)
        name = f"the engine, {arm.name}, against the stock model"
        found.append(_ties(name, [(r.explained, r.tokens, r.expected, r.hard) for r in results]))
        done(f"near-ties, {arm.name}")
    counts = auditor.stock_against_itself(first)
    name = f"the stock model in chunks of {OTHER_CHUNK} against itself"
    found.append(_ties(name, [(differing, tokens, 0.0, 0) for differing, tokens in counts]))
    done("near-ties, the stock model against itself")
    return found


def _ties(what: str, counts: Sequence[tuple[int, int, float, int]]) -> Ties:
    explained, tokens, expected, hard = zip(*counts, strict=True)
    return Ties(
        what=what,
        answers=len(counts),
        tokens=sum(tokens),
        affected=sum(count > 0 for count in explained),
        explained=sum(explained),
        expected=sum(expected),
        hard=sum(hard),
        share=pooled_share([[1.0] * e + [0.0] * (t - e) for e, t in zip(explained, tokens, strict=True)]),
    )


def _make_audits(assembled: Assembled) -> Audits:
    """The engine's audits, their tolerance measured."""
    from specproxy.engine.auditing import make_audits
    from specproxy.engine.tolerance import measure_at_once

    audits = make_audits(assembled)
    if audits.tolerance is None:
        audits.tolerance = measure_at_once(audits.measure())
    return audits


def _bundle(assembled: Assembled, submission: Submission, answer: Answer) -> AuditBundle:
    decision = submission.decision
    return AuditBundle(
        submission.id,
        assembled.model.fingerprint,
        assembled.numerics,
        submission.prompt,
        answer.token_ids,
        answer.finish_reason or "abort",  # type: ignore[arg-type]
        submission.params,
        submission.seed,
        submission.choice,
        decision.route,
        decision.revision,
        stop_token=answer.token_ids[-1] if answer.finish_reason == "stop" else None,
        drafters=decision.drafters,
    )

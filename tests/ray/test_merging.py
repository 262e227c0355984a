"""Evidence of several replicas as that of one."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from specproxy.gate.evidence import Evidence, no_evidence
from specproxy.gate.mismatches import MismatchTest
from specproxy.gate.rules import Rules
from specproxy.ray.merging import Shrunk, added, copied, since

RULES = Rules(tail_margins={"ttft_p95": 0.1}, rate_margins={"ties": 0.02}, mismatch=MismatchTest(zero=False, p1=0.2))

SEEN = st.tuples(st.floats(0.01, 100), st.floats(0.01, 100), st.booleans())


def grow(evidence: Evidence, seen: list[tuple[float, float, bool]]) -> Evidence:
    """Take in what was seen, of every kind."""
    for mine, other, good in seen:
        for place in (evidence.shadow, evidence.live):
            place.add_speeds(mine, other)
            place.add_costs(other, mine)
            place.tails["ttft_p95"].add_pair(mine, other)
            place.tails["ttft_p95"].add(mine, candidate=good)
            place.rates["ties"].add(candidate=good, good=mine > other)
            place.count(candidate=good)
            place.candidate_work.add(3, 1, memory=int(mine))
            place.engine_errors += good
        evidence.mismatches.add(RULES.mismatch, hard=mine > 90, explained=good)
    return evidence


def flat(evidence: Evidence) -> dict[str, float]:
    """Every number, without what depends on the order of a sequential test."""
    found = msgspec.json.decode(msgspec.json.encode(evidence))
    for name in ("log_ratio", "accepted", "rejected"):
        del found["mismatches"][name]
    numbers: dict[str, float] = {}
    waiting = [("", found)]
    while waiting:
        path, value = waiting.pop()
        if isinstance(value, dict):
            waiting += [(f"{path}/{name}", item) for name, item in value.items()]
        elif isinstance(value, int | float):
            numbers[path] = value
    return numbers


@given(st.lists(SEEN, max_size=8), st.lists(SEEN, max_size=8), st.lists(SEEN, max_size=8))
def test_replicas_add_up(
    before: list[tuple[float, float, bool]], one: list[tuple[float, float, bool]], two: list[tuple[float, float, bool]]
) -> None:
    """What two replicas saw since a common beginning, added to it, is what one would have seen."""
    start = grow(no_evidence(RULES), before)
    parts = [since(grow(copied(start), seen), start) for seen in (one, two)]
    total = start
    for part in parts:
        total = added(total, part, RULES.mismatch)
    alone = grow(no_evidence(RULES), [*before, *one, *two])
    assert flat(total) == pytest.approx(flat(alone), rel=1e-6, abs=1e-6)


def test_mismatches_of_a_part_reject_as_they_would_alone() -> None:
    """A part with hard mismatches is walked with these first: what rejects alone rejects in any company."""
    test = RULES.mismatch
    part, many = no_evidence(RULES), no_evidence(RULES)
    for _ in range(4):
        part.mismatches.add(test, hard=True)
    for _ in range(1000):
        many.mismatches.add(test, hard=False)
    assert part.mismatches.rejected
    assert added(many, part, test).mismatches.rejected
    assert added(part, many, test).mismatches.rejected


def test_evidence_that_was_begun_anew_is_told_apart() -> None:
    """Fewer observations than before are no growth."""
    old = grow(no_evidence(RULES), [(1.0, 2.0, True)])
    with pytest.raises(Shrunk):
        since(no_evidence(RULES), old)

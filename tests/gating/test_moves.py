"""Moves by evidence in fixed numbers, and by a person's word."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from specproxy.errors import IllegalMove, StaleWrite, UnknownRevision
from specproxy.gate.orders import Order
from specproxy.gate.states import GateState
from specproxy.server.gating.switches import AUDIT
from tests.gating.desk import Desk, only, policy, prove

OLD, NEW = only("off"), only("{drafters: ngram}")
HOUR = 3600.0


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    """A candidate that nothing is known of."""
    made = await Desk(tmp_path).open(policy(OLD))
    await made.edit(policy(NEW))
    yield made
    await made.close()


async def order(
    desk: Desk, what: Order, revision: str, *, version: int | None = None, force: bool = False
) -> GateState:
    """A person's word."""
    return await desk.moves.order(
        what, "default", revision, reason="because", actor="ann", version=version, force=force
    )


async def test_evidence_alone_leads_through_every_phase(desk: Desk) -> None:
    """Each step asks for its own; then what served before is superseded, and no request is refused meanwhile."""
    member = desk.member()
    await desk.moves.tick()
    assert member.state.phase == "shadow"
    prove(member, shadow=400)
    await desk.moves.tick()
    assert member.state.phase == "shadow", "no audit was seen"
    prove(member, clean=299)
    await desk.moves.tick()
    assert (member.state.phase, member.state.step) == ("canary", 0)
    prove(member, live=50)
    await desk.moves.tick()
    assert (member.state.phase, member.state.step) == ("canary", 1)
    prove(member, live=50)
    await desk.moves.tick()
    assert await desk.phases() == ["superseded", "active"]
    assert desk.decide().drafters == ("ngram",)
    assert desk.decide().revision == member.revision
    assert await desk.book.ledger.call(lambda store: store.verify()) == desk.book.log_size


async def test_a_slower_drafter_is_rejected(desk: Desk) -> None:
    """Proven by pairs in shadow, before any user meets it."""
    prove(desk.member(), shadow=50, gain=-0.3, clean=299)
    await desk.moves.tick()
    assert await desk.phases() == ["active", "rejected"]
    assert "speed" in desk.member().reason


async def test_a_drafter_that_is_no_faster_is_paused_and_never_promoted(desk: Desk) -> None:
    """Inconclusive means that a person has to look, after max_age_h."""
    member = desk.member()
    prove(member, shadow=6, gain=0.03, clean=299)
    for _ in range(3):
        await desk.moves.tick()
        assert member.state.phase == "shadow"
        desk.clock.now += 40 * HOUR
    desk.clock.now += 60 * HOUR
    await desk.moves.tick()
    assert member.state.phase == "paused"
    assert "inconclusive" in member.reason


async def test_an_engine_error_rolls_a_canary_back_at_once(desk: Desk) -> None:
    """One is enough: the goal for engine errors is none."""
    member = desk.member()
    prove(member, shadow=400, clean=299)
    await desk.moves.tick()
    assert member.state.phase == "canary"
    member.evidence.live.engine_errors += 1
    member.evidence.live.count(candidate=True)
    await desk.moves.tick()
    assert await desk.phases() == ["active", "rolled_back"]


async def test_a_wrong_answer_rolls_what_serves_back_to_what_served_before(desk: Desk) -> None:
    """Also long after promotion; the files still say it, and it does not come back."""
    member = desk.member()
    prove(member, shadow=400, live=50, clean=299)
    await desk.moves.tick()
    prove(member, live=50)
    await desk.moves.tick()
    prove(member, live=50)
    await desk.moves.tick()
    assert await desk.phases() == ["superseded", "active"]
    member.evidence.mismatches.add(member.rules.mismatch, hard=True)
    await desk.moves.tick()
    assert await desk.phases() == ["active", "rolled_back"]
    assert desk.decide().drafters == ()
    await desk.moves.tick()
    assert await desk.phases() == ["active", "rolled_back"]


async def test_a_person_promotes_with_force_and_rolls_back(desk: Desk) -> None:
    """Force goes without open proofs; each order is in the log with its actor and reason."""
    member = desk.member()
    await desk.moves.tick()
    with pytest.raises(IllegalMove, match="not proven yet"):
        await order(desk, "promote", member.revision)
    assert (await order(desk, "promote", member.revision, force=True)).phase == "active"
    assert desk.decide().drafters == ("ngram",)
    assert (await order(desk, "rollback", member.revision)).phase == "rolled_back"
    assert desk.decide().drafters == ()
    log = await desk.book.ledger.call(lambda store: store.log())
    assert [e.actor for e in log if e.reason.startswith("because")] == ["ann", "ann"]


async def test_what_the_gate_stops_is_an_error_and_what_a_person_takes_back_a_warning(desk: Desk) -> None:
    """So that an alert on errors does not wake anybody who was awake."""
    member = desk.member()
    await desk.moves.tick()
    with capture_logs() as ordered:
        await order(desk, "promote", member.revision, force=True)
        await order(desk, "rollback", member.revision)
        await desk.switches.kill("default", None, reason="odd", actor="ann")
    assert [(line["log_level"], line.get("after"), line.get("actor")) for line in ordered] == [
        ("info", "active", "ann"),
        ("warning", "rolled_back", "ann"),
        ("warning", None, None),  # The files still say what was rolled back.
        ("warning", None, "ann"),
    ]
    with capture_logs() as stopped:
        await desk.edit(policy(only("{drafters: ngram, k: 3}")))
        prove(desk.member(), shadow=50, gain=-0.3, clean=299)
        await desk.moves.tick()
        await desk.switches.kill("default", "ngram", reason="hard mismatch", actor=AUDIT)
    ends = [line for line in stopped if line.get("after") == "rejected" or line["event"].startswith("speculation")]
    assert [(line["log_level"], line["actor"]) for line in ends] == [("error", "gate"), ("error", "audit")]


async def test_a_paused_candidate_goes_on_when_a_person_says_so(desk: Desk) -> None:
    """Where it was."""
    member = desk.member()
    await desk.moves.tick()
    await order(desk, "pause", member.revision)
    prove(member, shadow=400, clean=299)
    await desk.moves.tick()
    assert member.state.phase == "paused"
    await order(desk, "resume", member.revision)
    await desk.moves.tick()
    assert member.state.phase == "canary"


async def test_orders_that_cannot_be_obeyed_change_nothing(desk: Desk) -> None:
    """A stale version, an unknown revision, a first revision without anything before it."""
    await desk.moves.tick()
    member, first = desk.member(), desk.book.active["default"]
    before = await desk.book.ledger.call(lambda store: store.verify())
    with pytest.raises(StaleWrite):
        await order(desk, "pause", member.revision, version=member.state.version - 1)
    with pytest.raises(UnknownRevision):
        await order(desk, "pause", "f" * 64)
    with pytest.raises(IllegalMove, match="nothing served before it"):
        await order(desk, "rollback", first.revision)
    assert await desk.book.ledger.call(lambda store: store.verify()) == before
    assert await desk.phases() == ["active", "shadow"]

"""Arms, and what switches off."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from specproxy.errors import IllegalMove
from specproxy.gate.kills import Kill
from specproxy.server.gating.kills import mute
from specproxy.server.gating.switches import AUDIT
from specproxy.vocabulary import Decision
from tests.gating.desk import Desk, only, policy, prove

NGRAM, BOTH = only("{drafters: ngram}"), only("{drafters: [ngram, model]}")
USERS = [f"user {number}" for number in range(600)]


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    """A gate whose route keeps a tenth of conversations plain."""
    made = await Desk(tmp_path).open(policy(NGRAM, hold_out=0.1))
    yield made
    await made.close()


async def test_the_hold_out_is_plain_for_good_and_says_so(desk: Desk) -> None:
    """Its share is as configured, and a conversation never changes sides."""
    first = [desk.decide(user) for user in USERS]
    plain = [decision for decision in first if decision.arm == "plain"]
    assert 0.06 < len(plain) / len(USERS) < 0.14
    assert all(not decision.drafters and "hold-out" in str(decision.reason) for decision in plain)
    assert [desk.decide(user) for user in USERS] == first


async def test_a_canary_serves_its_share_of_the_others_and_whoever_is_in_stays_in(desk: Desk) -> None:
    """A higher step only adds conversations."""
    await desk.edit(policy(BOTH, hold_out=0.1))
    member = desk.member()
    prove(member, shadow=300, clean=299)
    await desk.moves.tick()
    low = {user for user in USERS if desk.decide(user).arm == "candidate"}
    assert 0.12 < len(low) / len(USERS) < 0.25
    inside = desk.decide(next(iter(low)))
    assert (inside.revision, inside.drafters) == (member.revision, ("ngram", "model"))
    prove(member, live=30)
    await desk.moves.tick()
    high = {user for user in USERS if desk.decide(user).arm == "candidate"}
    assert low < high
    assert not any(desk.decide(user).arm == "plain" for user in high)


async def test_a_request_that_chooses_for_itself_is_in_no_arm(desk: Desk) -> None:
    """It would prove nothing of either."""
    decision = desk.decide("user 1", specproxy={"speculate": "off"})
    assert (decision.arm, decision.drafters) == ("override", ())


async def test_a_kill_holds_until_it_is_lifted_also_over_a_restart(desk: Desk) -> None:
    """Of a route or of all; the log has a line for each."""
    await desk.switches.kill("default", None, reason="odd", actor="ann")
    assert desk.decide("user 1").drafters == ()
    assert "switched off by ann: odd" in str(desk.decide("user 1").reason)
    await desk.close()
    await desk.open(policy(NGRAM, hold_out=0.1))
    assert desk.decide("user 1").drafters == ()
    with pytest.raises(IllegalMove, match="default"):
        await desk.switches.lift(None, reason="fine", actor="ann")
    await desk.switches.lift("default", reason="fine", actor="ann")
    assert desk.decide("user 1").drafters == ("ngram",)
    await desk.switches.kill(None, None, reason="all", actor="ann")
    assert desk.decide("user 1", specproxy={"speculate": "ngram"}).drafters == ()
    log = await desk.book.ledger.call(lambda store: store.log())
    assert [entry.reason for entry in log[-3:]] == [
        "speculation off: odd",
        "speculation on again: fine",
        "speculation off on every route: all",
    ]


async def test_what_is_switched_off_while_another_switch_is_lifted_stays_off(desk: Desk) -> None:
    """Lifting takes back what was off when it was asked for, in memory as on disk."""
    await desk.switches.kill("default", None, reason="odd", actor="ann")
    async with desk.book.lock:
        lifting = asyncio.ensure_future(desk.switches.lift("default", reason="fine", actor="ann"))
        await asyncio.sleep(0)
        thrown = asyncio.ensure_future(desk.switches.kill("default", "ngram", reason="wrong", actor=AUDIT))
        await asyncio.sleep(0)
    await asyncio.gather(lifting, thrown)
    assert [(kill.drafter, kill.reason) for kill in desk.book.kills] == [("ngram", "wrong")]
    assert await desk.book.ledger.call(lambda store: store.kills()) == desk.book.kills
    assert desk.decide("user 1").drafters == ()


async def test_a_kill_that_cannot_be_written_holds_and_a_lift_that_cannot_does_not(desk: Desk) -> None:
    """A full disk may not keep speculation on, nor turn it on while the log does not say so."""
    await desk.switches.kill("default", "ngram", reason="odd", actor="ann")
    await desk.book.ledger.call(lambda store: store.close())
    with pytest.raises(sqlite3.ProgrammingError):
        await desk.switches.lift("default", reason="fine", actor="ann")
    with pytest.raises(sqlite3.ProgrammingError):
        await desk.switches.kill("default", None, reason="worse", actor="ann")
    assert desk.decide("user 1").drafters == ()
    assert [kill.reason for kill in desk.book.kills] == ["odd", "worse"]
    await desk.close()
    await desk.open(policy(NGRAM, hold_out=0.1))
    assert [kill.reason for kill in desk.book.kills] == ["odd"]


async def test_a_kill_of_a_route_that_does_not_serve_yet_is_in_the_log_too(desk: Desk) -> None:
    """Beside its candidate."""
    new = "  - {name: chat, match: {temperature: {lt: 0.5}}, speculate: {drafters: ngram}}\n"
    await desk.edit(policy(new + NGRAM, hold_out=0.1))
    await desk.switches.kill("chat", None, reason="odd", actor="ann")
    last = (await desk.book.ledger.call(lambda store: store.log()))[-1]
    assert (last.route, last.reason, last.actor) == ("chat", "speculation off: odd", "ann")
    assert await desk.book.ledger.call(lambda store: store.verify()) == desk.book.log_size


def test_a_kill_of_one_drafter_leaves_the_others() -> None:
    """The last one to go leaves plain decoding."""
    decision = Decision("r", "a" * 64, drafters=("ngram", "model"), auto=True)
    ngram = Kill("r", "ngram", "wrong", "audit", 0.0)
    assert mute(decision, [ngram]).drafters == ("model",)
    assert mute(replace(decision, route="other"), [ngram]).drafters == ("ngram", "model")
    both = mute(decision, [ngram, Kill("r", "model", "wrong", "audit", 0.0)])
    assert (both.drafters, both.k_max, both.auto) == ((), 0, False)

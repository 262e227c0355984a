"""What the gate's actor does, without Ray: two replicas that report, move and switch."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from specproxy.errors import StaleWrite
from specproxy.gate.evidence import no_evidence
from specproxy.gate.kills import Kill
from specproxy.gate.read_only import ReadOnlyStore
from specproxy.gate.rules import rules_for
from specproxy.gate.states import GateState, Move, new_state
from specproxy.gate.store import Revision, Transition
from specproxy.policy.schema import Settings
from specproxy.ray.gate_actor import LEASE_S, GateKeeper, Switched

KEY = ("r", "a" * 64)


@pytest.fixture
async def keeper(tmp_path: Path) -> AsyncIterator[GateKeeper]:
    """An actor's object on a file of its own, with one revision in it."""
    made = GateKeeper(str(tmp_path / "gate.db"))
    state = new_state(*KEY, 1.0)
    revision = Revision(route="r", revision=KEY[1], position=0, match={}, settings={}, drafters={}, created=1.0)
    written = await made.submit(revision, Transition(Move(state, state, "new"), "a", 1.0))
    assert written.result.version == 1
    yield made
    await made._ledger.close()


async def state_of(keeper: GateKeeper) -> GateState:
    """The one state there is."""
    found: GateState = await keeper.read("state", *KEY)
    return found


def kill(name: str) -> Kill:
    """A switch."""
    return Kill(name, None, "why", "who", 1.0)


async def test_evidence_adds_up(keeper: GateKeeper) -> None:
    """Parts of two replicas are one sum, and who has not heard of it yet is told."""
    part = no_evidence(rules_for(Settings()))
    part.live.count(candidate=True)
    for _ in range(2):
        await keeper.add_evidence(KEY, part)
    news = await keeper.report("one", {KEY: 0})
    assert news.totals[KEY][1].live.num_candidate == 2
    assert (await keeper.report("two", {KEY: news.totals[KEY][0]})).totals == {}


async def test_a_later_actor_says_all_again(keeper: GateKeeper) -> None:
    """An actor that was started again on the same file is told apart by its numbers, and tells what the file has."""
    part = no_evidence(rules_for(Settings()))
    await keeper.add_evidence(KEY, part)
    before = await keeper.report("one", {KEY: 0})
    await keeper._ledger.close()
    later = GateKeeper(str(keeper._path))
    after = await later.report("one", {KEY: before.totals[KEY][0]})
    assert after.serial != before.serial
    assert after.totals[KEY][1] == before.totals[KEY][1]
    keeper._ledger = later._ledger


async def test_one_replica_leads(keeper: GateKeeper, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first that reports leads until it leaves, or says nothing for some seconds."""
    clock = [0.0]
    monkeypatch.setattr("specproxy.ray.gate_actor.time.monotonic", lambda: clock[0])
    clock[0] = 100.0
    assert [(await keeper.report(name, {})).leads for name in ("one", "two")] == [True, False]
    await keeper.leave("one")
    clock[0] += 0.1
    assert [(await keeper.report(name, {})).leads for name in ("two", "one")] == [True, False]
    clock[0] += LEASE_S + 1
    assert (await keeper.report("one", {})).leads


async def test_a_late_move_is_refused_and_returned(keeper: GateKeeper) -> None:
    """Two replicas that move the same state: the second gets StaleWrite, and the serial tells of the first alone."""
    state = await state_of(keeper)
    move = Transition(Move(state, state, "again"), "a", 2.0)
    first = await keeper.commit([move], [False], None)
    assert first.after > first.before
    assert isinstance(await keeper.commit([move], [False], None), StaleWrite)
    assert (await keeper.report("one", {})).serial == first.after


async def test_switches_of_two_replicas_do_not_undo_each_other(keeper: GateKeeper, tmp_path: Path) -> None:
    """A switch is thrown from an old view of state and switches: it holds beside the one that came before."""
    old = await state_of(keeper)
    line = Transition(Move(old, old, "off"), "a", 2.0)
    for name in ("x", "y"):
        await keeper.commit([line], [False], Switched((kill(name),), ()))
    assert await keeper.read("kills") == [kill("x"), kill("y")]
    await keeper.commit([line], [False], Switched((), (kill("x"),)))
    assert await keeper.read("kills") == [kill("y")]
    assert ReadOnlyStore(tmp_path / "gate.db").verify() == 4


async def test_only_reads_are_read(keeper: GateKeeper) -> None:
    """Whatever changes the store has a call of its own."""
    with pytest.raises(ValueError, match="no read"):
        await keeper.read("close")

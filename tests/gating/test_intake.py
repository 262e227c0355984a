"""What an edit of the policy files does: at once, as a candidate, or not at all."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from specproxy.policy.catalogue import DrafterSpec
from tests.gating.desk import Desk, facts, only, policy, prove

OLD, NEW = only("off"), only("{drafters: ngram}")
TWO = "  - {name: chat, match: {temperature: {lt: 0.5}}, speculate: {drafters: ngram}}\n" + OLD


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    """Not open yet; closed at the end."""
    made = Desk(tmp_path)
    yield made
    if made.book.ledger.opened:
        await made.close()


async def test_the_first_start_makes_what_the_files_say_active(desk: Desk) -> None:
    """By the actor "start", and the set on disk itself decides."""
    await desk.open(policy(TWO))
    assert (await desk.phases("chat"), await desk.phases()) == (["active"], ["active"])
    assert desk.book.serving is desk.book.disk
    log = await desk.book.ledger.call(lambda store: store.log())
    assert {entry.actor for entry in log} == {"start"}


async def test_an_edit_of_a_gated_route_is_a_candidate_and_serves_nobody(desk: Desk) -> None:
    """What was active goes on serving; the candidate has the policy's own revision."""
    await desk.open(policy(OLD))
    await desk.edit(policy(NEW))
    assert await desk.phases() == ["active", "draft"]
    assert desk.decide().drafters == ()
    assert desk.member().revision == desk.book.disk.routes[0].decision.revision


async def test_an_edit_without_a_gate_is_active_at_once_and_logged(desk: Desk) -> None:
    """As it is where nobody asked for a gate."""
    await desk.open(policy(OLD, mode="off"))
    await desk.edit(policy(NEW, mode="off"))
    assert await desk.phases() == ["superseded", "active"]
    assert desk.decide().drafters == ("ngram",)
    assert desk.book.serving is desk.book.disk
    await desk.edit(policy(OLD, mode="off"))
    assert await desk.phases() == ["active", "superseded"]


async def test_an_edit_made_while_the_server_was_down_is_gated_too(desk: Desk) -> None:
    """The stored content serves, not the files."""
    await desk.open(policy(OLD))
    await desk.close()
    await desk.open(policy(NEW))
    assert desk.decide().drafters == ()
    assert await desk.phases() == ["active", "draft"]


async def test_a_candidate_goes_on_where_it_was_after_a_restart(desk: Desk) -> None:
    """With its evidence; a second start changes nothing."""
    await desk.open(policy(OLD))
    await desk.edit(policy(NEW))
    prove(desk.member(), shadow=20, clean=299)
    await desk.moves.tick()
    before = desk.member().state
    assert before.phase == "canary"
    await desk.close()
    await desk.open(policy(NEW))
    assert desk.member().state == before
    assert desk.member().evidence.shadow.speed.n == 20


async def test_an_edit_cannot_switch_off_the_gate_that_it_has_to_pass(desk: Desk) -> None:
    """The gate of what serves counts; switching it off alone is no change of traffic, and is at once."""
    await desk.open(policy(OLD))
    await desk.edit(policy(NEW, mode="off"))
    assert await desk.phases() == ["active", "draft"]
    assert desk.member().rules.mode == "auto"
    await desk.edit(policy(OLD, mode="off"))
    assert await desk.phases() == ["superseded", "superseded", "active"]


async def test_an_edit_that_is_taken_back_supersedes_its_candidate(desk: Desk) -> None:
    """And the same edit again begins anew."""
    await desk.open(policy(OLD))
    await desk.edit(policy(NEW))
    prove(desk.member(), clean=5)
    await desk.edit(policy(OLD))
    assert await desk.phases() == ["active", "superseded"]
    assert desk.book.change is None
    await desk.edit(policy(NEW))
    assert await desk.phases() == ["active", "draft"]
    assert desk.member().evidence.mismatches.clean == 0


async def test_what_was_rejected_stays_rejected_whatever_the_files_say(desk: Desk) -> None:
    """Until a person hands it in again, with a reason."""
    await desk.open(policy(OLD))
    await desk.edit(policy(NEW))
    desk.member().evidence.mismatches.add(desk.member().rules.mismatch, hard=True)
    await desk.moves.tick()
    assert await desk.phases() == ["active", "rejected"]
    await desk.close()
    await desk.open(policy(NEW))
    assert await desk.phases() == ["active", "rejected"]
    member = desk.member()
    await desk.moves.order(
        "resubmit", "default", member.revision, reason="fixed", actor="ann", version=None, force=False
    )
    assert await desk.phases() == ["active", "draft"]


async def test_routes_move_on_their_own_while_no_condition_changes(desk: Desk) -> None:
    """Two edited routes are two candidates."""
    await desk.open(policy(TWO))
    await desk.edit(policy(TWO.replace("ngram}", "ngram, k: 3}").replace("off", "{drafters: ngram}")))
    assert desk.book.change is not None
    assert not desk.book.change.linked
    prove(desk.member("chat"), shadow=20, clean=299)
    await desk.moves.tick()
    assert (desk.member("chat").state.phase, desk.member().state.phase) == ("canary", "shadow")


async def test_an_edited_match_is_a_change_of_every_route_whose_traffic_moves(desk: Desk) -> None:
    """The other route, whose text stays, has to pass the gate too; both serve together or not at all."""
    await desk.open(policy(TWO))
    wider = policy(TWO.replace("0.5", "0.9"))
    await desk.edit(wider, recent=(facts(temperature=0.7),))
    assert await desk.phases("chat") == ["active", "draft"]
    assert await desk.phases() == ["active", "draft"]
    assert desk.member().rules.goal == "no_worse"
    prove(desk.member("chat"), shadow=300, clean=299, gain=0.0)
    await desk.moves.tick()
    assert desk.member("chat").state.phase == "shadow"
    assert desk.decide(temperature=0.7).route == "default"
    desk.member().evidence.mismatches.add(desk.member().rules.mismatch, hard=True)
    await desk.moves.tick()
    assert await desk.phases("chat") == ["active", "rejected"]
    assert await desk.phases() == ["active", "rejected"]


async def test_a_request_that_would_move_adds_its_routes_to_the_change(desk: Desk) -> None:
    """Also where no request had shown it when the files were read."""
    await desk.open(policy(TWO))
    await desk.edit(policy(TWO.replace("0.5", "0.9")))
    assert list(desk.book.change.members if desk.book.change else ()) == ["chat"]
    desk.decide(temperature=0.7)
    assert desk.decider.uncovered == {"default"}
    await desk.intake.cover(desk.decider.uncovered)
    assert await desk.phases() == ["active", "draft"]


async def test_linked_routes_are_promoted_together_and_rolled_back_together(desk: Desk) -> None:
    """In one write each way."""
    await desk.open(policy(TWO))
    await desk.edit(policy(TWO.replace("0.5", "0.9")), recent=(facts(temperature=0.7),))
    for name in ("chat", "default"):
        prove(desk.member(name), shadow=400, clean=299, gain=0.0)
    await desk.moves.tick()
    assert desk.book.change is not None
    for _ in range(2):
        for name in ("chat", "default"):
            prove(desk.member(name), live=400, gain=0.0)
        await desk.moves.tick()
        if desk.book.change is None:
            break
    assert await desk.phases("chat") == ["superseded", "active"]
    assert await desk.phases() == ["superseded", "active"]
    assert desk.decide(temperature=0.7).route == "chat"
    active = desk.book.active["chat"]
    await desk.moves.order(
        "rollback", "chat", active.revision, reason="no", actor="ann", version=active.state.version, force=False
    )
    assert await desk.phases("chat") == ["active", "rolled_back"]
    assert await desk.phases() == ["active", "rolled_back"]
    assert desk.decide(temperature=0.7).route == "default"


async def test_routes_come_go_and_change_places_at_once_without_a_gate(desk: Desk) -> None:
    """And a restart finds them in the same order."""
    await desk.open(policy(OLD, mode="off"))
    await desk.edit(policy(TWO, mode="off"))
    assert [route.name for route in desk.book.serving.routes] == ["chat", "default"]
    await desk.close()
    await desk.open(policy(TWO, mode="off"))
    assert desk.book.serving is desk.book.disk
    assert desk.decide(temperature=0.1).route == "chat"
    await desk.edit(policy(OLD, mode="off"))
    assert await desk.phases("chat") == ["superseded"]
    assert desk.decide(temperature=0.1).route == "default"


async def test_new_weights_draft_only_once_the_gate_let_them_pass(desk: Desk) -> None:
    """The drafter is muted on the active route, and the route with it is a candidate."""
    await desk.open(policy(NEW))
    await desk.close()
    specs = (DrafterSpec("ngram", "ngram", 63, None, "n2"),)
    desk.catalogue = msgspec.structs.replace(desk.catalogue, drafters=specs)
    await desk.open(policy(NEW))
    assert desk.decide().drafters == ()
    assert await desk.phases() == ["active", "draft"]


async def test_a_stored_route_whose_drafter_is_gone_serves_without_it(desk: Desk) -> None:
    """Rather than keep the server from starting."""
    await desk.open(policy(NEW))
    await desk.close()
    desk.catalogue = msgspec.structs.replace(desk.catalogue, drafters=())
    await desk.open(policy(OLD))
    assert desk.decide().drafters == ()
    assert await desk.phases() == ["active"]

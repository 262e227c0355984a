"""The moves that a person makes."""

from __future__ import annotations

import copy
from typing import get_args

import pytest
from msgspec.structs import replace

from specproxy.errors import IllegalMove
from specproxy.gate.machine import move
from specproxy.gate.orders import FROM, Order, hand_back, hand_over, obey, supersede
from specproxy.gate.states import Phase
from tests.gate.builders import NOW, candidate, observed, rules

RULES = rules()
PROVEN = observed(RULES, shadow=1500, live=300, audits=299)
OPEN = observed(RULES, shadow=100, live=100, audits=299)


@pytest.mark.parametrize("phase", get_args(Phase))
@pytest.mark.parametrize("order", get_args(Order))
def test_an_order_is_obeyed_in_its_phases_only(order: Order, phase: Phase) -> None:
    """Elsewhere it is refused with the phases in which it can be given."""
    state = candidate(phase, paused_from="canary" if phase == "paused" else None)
    if phase in FROM[order]:
        assert obey(order, state, PROVEN, RULES, NOW, reason="because").changed
    else:
        with pytest.raises(IllegalMove, match="expected"):
            obey(order, state, PROVEN, RULES, NOW, reason="because")


@pytest.mark.parametrize("order", get_args(Order))
def test_every_order_needs_a_reason(order: Order) -> None:
    """Blank is none."""
    with pytest.raises(IllegalMove, match="reason"):
        obey(order, candidate(next(iter(FROM[order]))), PROVEN, RULES, NOW, reason=" ")


def test_promotion_asks_for_the_gates_own_proofs() -> None:
    """What is open is named; force goes without it, and the log says so."""
    with pytest.raises(IllegalMove, match="itl_p95"):
        obey("promote", candidate("canary"), OPEN, RULES, NOW, reason="it looks fine")
    forced = obey("promote", candidate("canary"), OPEN, RULES, NOW, reason="it looks fine", force=True)
    assert (forced.after.phase, forced.reason) == ("active", "it looks fine (forced)")


def test_force_never_goes_over_a_proof_of_harm() -> None:
    """A hard mismatch cannot be promoted by anybody."""
    evidence = copy.deepcopy(PROVEN)
    evidence.mismatches.add(RULES.mismatch, hard=True)
    with pytest.raises(IllegalMove, match="mismatches"):
        obey("promote", candidate("canary"), evidence, RULES, NOW, reason="now", force=True)


def test_a_resumed_candidate_begins_at_the_first_step() -> None:
    """Paused at half of the traffic, it comes back with a hundredth."""
    paused = obey("pause", candidate("canary", step=3), OPEN, RULES, NOW, reason="lunch").after
    assert (paused.phase, paused.paused_from, paused.share(RULES)) == ("paused", "canary", 0)
    resumed = obey("resume", paused, OPEN, RULES, NOW + 60, reason="back").after
    assert (resumed.phase, resumed.step, resumed.step_from) == ("canary", 0, OPEN.live.num_candidate)
    assert (resumed.entered, resumed.paused_from) == (NOW + 60, None)


def test_a_promotion_supersedes_what_served_before_and_a_rollback_brings_it_back() -> None:
    """The moves come as one list, each pair to be written as one; the order suits one active revision per route."""
    serving = replace(candidate("active"), revision="cd" * 32)
    promotion = move(candidate("canary", step=4), PROVEN, RULES, NOW)
    old, new = hand_over(promotion, serving, NOW)
    assert (old.after.phase, new.after.phase, new.after.replaced) == ("superseded", "active", serving.revision)
    rollback = obey("rollback", new.after, PROVEN, RULES, NOW, reason="worse")
    bad, back = hand_back(rollback, old.after, NOW)
    assert (bad.after.phase, back.after.phase, back.after.revision) == ("rolled_back", "active", serving.revision)
    assert (hand_over(promotion, None, NOW), hand_back(rollback, None, NOW)) == ([promotion], [rollback])


def test_only_what_was_superseded_comes_back() -> None:
    """A revision that was rolled back does not serve again because another one was."""
    rollback = obey("rollback", candidate("active"), PROVEN, RULES, NOW, reason="worse")
    with pytest.raises(IllegalMove, match="cannot serve again"):
        hand_back(rollback, candidate("rolled_back"), NOW)


def test_a_newer_edit_supersedes_a_candidate_but_not_an_end() -> None:
    """What is over stays what it was."""
    assert supersede(candidate("shadow"), "ef" * 32, NOW).after.phase == "superseded"
    with pytest.raises(IllegalMove, match="already"):
        supersede(candidate("rejected"), "ef" * 32, NOW)

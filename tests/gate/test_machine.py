"""The moves that evidence makes."""

from __future__ import annotations

import copy

import pytest
from msgspec.structs import replace

from specproxy.gate.evidence import Evidence, no_evidence
from specproxy.gate.machine import move
from specproxy.gate.rules import rules_for
from specproxy.gate.states import ENDS, GateState, Move
from specproxy.policy.schema import Gate, Settings
from tests.gate.builders import NOW, candidate, observed, rules

RULES = rules()
HOUR = 3600.0
PROVEN_SHADOW = observed(RULES, shadow=1500, audits=299)
PROVEN = observed(RULES, shadow=1500, live=300, audits=299)


def moved(state: GateState, evidence: Evidence, after_h: float = 1.0, **gate: object) -> Move:
    """The move an hour later."""
    return move(state, evidence, rules(**gate) if gate else RULES, NOW + after_h * HOUR)  # type: ignore[arg-type]


def test_the_way_of_a_good_candidate() -> None:
    """Draft, validated, shadow, five canary steps, active: one move at a time, each with its reason."""
    evidence, state, way = observed(RULES), candidate(), []
    for _ in range(30):
        if state.phase == "shadow":
            evidence = copy.deepcopy(PROVEN_SHADOW)
        evidence.live.num_candidate += 50
        if state.phase == "canary":
            evidence.live = copy.deepcopy(PROVEN.live)
            evidence.live.num_candidate = state.step_from + 50
        result = move(state, evidence, RULES, NOW)
        assert result.reason
        state = result.after
        way.append((state.phase, state.share(RULES)))
        if state.phase == "active":
            break
    assert way == [
        ("validated", 0),
        ("shadow", 0),
        *[("canary", share) for share in (0.01, 0.05, 0.25, 0.5, 1.0)],
        ("active", 1.0),
    ]


def test_moves_are_pure() -> None:
    """The same inputs give the same move, and none of them is changed."""
    before = copy.deepcopy(PROVEN)
    assert moved(candidate("canary", step=1), PROVEN) == moved(candidate("canary", step=1), PROVEN)
    assert before == PROVEN


@pytest.mark.parametrize(
    ("problems", "phase"), [(None, "draft"), ([], "validated"), (["route.yaml:3: unknown drafter"], "rejected")]
)
def test_validation_decides_over_a_draft(problems: list[str] | None, phase: str) -> None:
    """Not yet validated waits, valid goes on, and a problem rejects with its text."""
    evidence = no_evidence(RULES)
    evidence.problems = problems
    result = moved(candidate(), evidence)
    assert result.after.phase == phase
    assert all(problem in result.reason for problem in problems or [])


def test_a_validated_candidate_waits_for_its_drafters() -> None:
    """Shadow traffic needs them loaded."""
    evidence = observed(RULES)
    evidence.loaded = False
    assert not moved(candidate("validated"), evidence).changed
    evidence.loaded = True
    assert moved(candidate("validated"), evidence).after.phase == "shadow"


def test_without_a_gate_an_edit_is_active_at_once() -> None:
    """Mode off asks for a valid route with loaded drafters and nothing else."""
    assert moved(candidate("validated"), observed(RULES), mode="off").after.phase == "active"


def test_shadow_lacks_what_is_not_proven_and_says_so() -> None:
    """Too few audits, too few pairs, a gain that is not proven: each keeps the candidate in shadow, by name."""
    for evidence, word in (
        (observed(RULES, shadow=200, audits=298), "mismatches"),
        (observed(RULES, shadow=49, audits=299), "speed"),
        (observed(RULES, shadow=200, audits=299, gain=0.03), "speed"),
    ):
        result = moved(candidate("shadow"), evidence)
        assert not result.changed
        assert word in result.reason


def test_a_hard_mismatch_ends_a_candidate_wherever_it_is() -> None:
    """Rejected from shadow or a pause, rolled back from the canary and from active, whatever else is proven."""
    evidence = copy.deepcopy(PROVEN)
    evidence.mismatches.add(RULES.mismatch, hard=True)
    ends = {phase: moved(candidate(phase), evidence).after.phase for phase in ("shadow", "paused", "canary", "active")}
    assert ends == {
        "shadow": "rejected",
        "paused": "rejected",
        "canary": "rolled_back",
        "active": "rolled_back",
    }


def test_one_engine_error_ends_a_candidate() -> None:
    """A drafter that crashes the engine is rolled back by its own rule."""
    evidence = copy.deepcopy(PROVEN)
    evidence.live.engine_errors = 1
    result = moved(candidate("canary"), evidence)
    assert (result.after.phase, "engine_errors" in result.reason) == ("rolled_back", True)


def test_a_step_up_needs_its_own_samples() -> None:
    """What the candidate served before the step began does not count."""
    evidence = copy.deepcopy(PROVEN)
    state = candidate("canary", step=1, step_from=evidence.live.num_candidate - 49)
    assert not moved(state, evidence).changed
    evidence.live.num_candidate += 1
    assert moved(state, evidence).after.step == 2


def suspected() -> Evidence:
    """Evidence with live speeds that look bad and prove nothing yet."""
    evidence = observed(RULES, shadow=1500, audits=299, live=300)
    evidence.live.speed = observed(RULES, live=60, gain=-0.02, spread=0.22).live.speed
    return evidence


def test_likely_harm_takes_a_step_back_at_once() -> None:
    """One step, without waiting for samples; again only after another answer; never below the first step."""
    evidence = suspected()
    assert moved(candidate("canary"), evidence).evidence.failed() == ()  # type: ignore[union-attr]
    served = evidence.live.num_candidate
    result = moved(candidate("canary", step=3, step_from=served - 1), evidence)
    assert (result.after.step, result.after.step_from) == (2, served)
    assert not moved(result.after, evidence).changed
    first = moved(candidate("canary", step=0), evidence)
    assert not first.changed
    assert "likely worse" in first.reason


@pytest.mark.parametrize(("phase", "step"), [("shadow", 0), ("canary", 0), ("canary", 4)])
def test_inconclusive_is_paused_and_never_promoted(phase: str, step: int) -> None:
    """However old the candidate, what is not proven leads to a pause, and the pause to expiry."""
    evidence = observed(RULES, shadow=40, live=40, audits=100)
    state = candidate(phase, step=step)
    for hours in (0, 1, 167.9):
        assert moved(state, evidence, hours).after == state
    paused = moved(state, evidence, 168)
    assert (paused.after.phase, paused.after.paused_from) == ("paused", phase)
    assert paused.after.share(RULES) == 0
    assert moved(paused.after, PROVEN, 169).after == paused.after
    assert moved(paused.after, PROVEN, 2 * 168 + 1).after.phase == "expired"


@pytest.mark.parametrize("phase", ["draft", "validated"])
def test_what_nobody_takes_up_expires(phase: str) -> None:
    """A draft that is not validated, drafters that are never loaded."""
    assert moved(candidate(phase), no_evidence(RULES), 168).after.phase == "expired"


@pytest.mark.parametrize("missing", ["ttft_p95", "itl_p95", "cost", "speed"])
def test_every_margin_has_to_be_proven_before_active(missing: str) -> None:
    """At the last step, one metric without data keeps the candidate a candidate."""
    evidence = copy.deepcopy(PROVEN)
    nothing = no_evidence(RULES)
    for seen, empty in ((evidence.shadow, nothing.shadow), (evidence.live, nothing.live)):
        if missing in seen.tails:
            seen.tails[missing] = empty.tails[missing]
        elif missing == "cost":
            seen.cost = empty.cost
    if missing == "speed":
        evidence.live.speed = nothing.live.speed
    last = candidate("canary", step=4)
    assert moved(last, PROVEN).after.phase == "active"
    result = moved(last, evidence)
    assert not result.changed
    assert missing in result.reason


def test_a_rate_that_never_occurs_is_not_asked_for_and_one_that_does_is() -> None:
    """A route without tool calls is promoted; with a few, validity has to be proven first."""
    evidence = copy.deepcopy(PROVEN)
    assert moved(candidate("canary", step=4), evidence).after.phase == "active"
    evidence.live.rates["tools"].add(candidate=True, good=True)
    assert not moved(candidate("canary", step=4), evidence).changed


def test_manual_mode_waits_for_a_person() -> None:
    """With everything proven the last step is left by a person's word only, and never by age."""
    for hours in (1, 1000):
        result = moved(candidate("canary", step=4), PROVEN, hours, mode="manual")
        assert not result.changed
        assert "person" in result.reason


def test_no_worse_lets_an_equal_candidate_pass() -> None:
    """The goal no_worse is won at equal speed, where faster is not."""
    given = rules(goal="no_worse")
    evidence = observed(given, shadow=1500, live=1500, audits=299, gain=0.0)
    last = candidate("canary", step=4)
    assert move(last, evidence, given, NOW).after.phase == "active"
    assert move(last, evidence, RULES, NOW).after.phase != "active"


def test_drift_of_an_active_route_is_shown_and_not_acted_upon() -> None:
    """An active revision that became slower stays, with the finding in its evidence."""
    evidence = observed(RULES, shadow=100, live=400, audits=299, gain=-0.2)
    result = moved(candidate("active"), evidence)
    assert not result.changed
    assert result.evidence is not None
    assert any(finding.metric == "speed" for finding in result.evidence.failed())


@pytest.mark.parametrize("phase", sorted(ENDS))
def test_nothing_moves_out_of_an_end(phase: str) -> None:
    """Neither evidence nor time."""
    assert not moved(candidate(phase), PROVEN, 10_000).changed


def test_a_canary_whose_steps_were_taken_away_is_paused() -> None:
    """A stored step beyond the rules' last one is no licence to serve everybody."""
    assert moved(candidate("canary", step=5), PROVEN).after.phase == "paused"


def test_rules_come_from_the_effective_settings() -> None:
    """Every key of the gate's mapping arrives; near-ties are to be proven in numeric mode only."""
    gate = Gate(mode="manual", goal="no_worse", min_gain=0.1, canary=[0.5, 0.1], min_samples=7, max_age_h=2)
    given = rules_for(Settings(gate=gate, exactness="numeric"))
    assert (given.mode, given.goal, given.min_gain, given.min_samples) == ("manual", "no_worse", 0.1, 7)
    assert (given.canary, given.max_age_s) == ((0.1, 0.5), 7200)
    assert (given.mismatch.zero, "ties" in given.must_prove) == (False, True)
    assert (RULES.mismatch.zero, "ties" in RULES.must_prove) == (True, False)
    assert rules_for(Settings()).mode == "off"
    assert replace(given, goal="faster").least_log_gain == -given.least_log_gain

"""The moves that evidence makes: a pure function of state, evidence, rules and time.

Forward only with everything proven that the next phase asks for; what stays inconclusive is paused when it is too old,
and never promoted. Harm that is proven rejects or rolls back; harm that is likely takes one canary step back at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from msgspec.structs import replace

from specproxy.gate.assessment import SPEED, Assessment, Finding, assess
from specproxy.gate.evidence import Evidence
from specproxy.gate.rules import Rules
from specproxy.gate.states import GateState, Move, Phase

Next = tuple[GateState, str]


def move(state: GateState, evidence: Evidence, rules: Rules, now: float) -> Move:
    """The move that ``evidence`` makes at the Unix time ``now``. The reason says what moved it, or what it waits
    for."""
    assessment = assess(evidence, rules)
    if state.phase == "canary" and state.step >= len(rules.canary):
        state_now, reason = (
            _enter(state, "paused", now),
            "the canary's steps changed: it has none at this place any more",
        )
    else:
        state_now, reason = _MOVES[state.phase](state, evidence, assessment, rules, now)
    return Move(state, state_now, reason, assessment)


def _enter(state: GateState, phase: Phase, now: float) -> GateState:
    """``state`` in another phase, at that phase's beginning."""
    paused_from = state.phase if phase == "paused" else None
    return replace(state, phase=phase, entered=now, step=0, step_from=0, paused_from=paused_from)


def _list(items: Sequence[object]) -> str:
    return "; ".join(str(item) for item in items)


def _too_old(state: GateState, rules: Rules, now: float) -> bool:
    return now - state.entered >= rules.max_age_s


def _age(rules: Rules) -> str:
    return f"{rules.max_age_s / 3600:g} h"


def _draft(state: GateState, evidence: Evidence, _: Assessment, rules: Rules, now: float) -> Next:
    if evidence.problems:
        return _enter(state, "rejected", now), f"not valid: {_list(evidence.problems)}"
    if evidence.problems is not None:
        return _enter(state, "validated", now), "valid"
    if _too_old(state, rules, now):
        return _enter(state, "expired", now), f"not validated within {_age(rules)}"
    return state, "waits to be validated"


def _validated(state: GateState, evidence: Evidence, _: Assessment, rules: Rules, now: float) -> Next:
    if evidence.loaded:
        if rules.mode == "off":
            return _enter(state, "active", now), "this route has no gate: an edit is active at once"
        return _enter(state, "shadow", now), "its drafters are loaded and passed their self-test"
    if _too_old(state, rules, now):
        return _enter(state, "expired", now), f"its drafters were not loaded within {_age(rules)}"
    return state, "waits for its drafters to be loaded and tested"


def _shadow(state: GateState, evidence: Evidence, assessment: Assessment, rules: Rules, now: float) -> Next:
    if failed := assessment.failed():
        return _enter(state, "rejected", now), f"proven worse: {_list(failed)}"
    lacking = assessment.lacking_for_canary()
    if not lacking:
        step_from = evidence.live.num_candidate
        share = rules.canary[0]
        left = [finding for finding in assessment.of(SPEED, "shadow") if finding.left_to_live]
        rest = f"; canary has to prove: {_list(left)}" if left else ""
        return replace(
            _enter(state, "canary", now), step_from=step_from
        ), f"proven in shadow: canary at {share:.3g}{rest}"
    return _wait(state, lacking, rules, now)


def _canary(state: GateState, evidence: Evidence, assessment: Assessment, rules: Rules, now: float) -> Next:
    if failed := assessment.failed():
        return _enter(state, "rolled_back", now), f"proven worse: {_list(failed)}"
    served = evidence.live.num_candidate
    here = served - state.step_from
    suspects = assessment.suspects()
    if suspects and state.step and here:
        lower = replace(state, step=state.step - 1, step_from=served)
        return lower, f"stepped down to {rules.canary[lower.step]:.3g}, likely worse: {_list(suspects)}"
    few = [f"{rules.min_samples} answers at this step, {here} so far"] if here < rules.min_samples else []
    likely = [f"likely worse: {_list(suspects)}"] if suspects else []
    if state.step + 1 < len(rules.canary):
        if few or likely:
            return _wait(state, few + likely, rules, now)
        higher = replace(state, step=state.step + 1, step_from=served)
        return higher, f"{here} answers without a sign of harm: canary at {rules.canary[higher.step]:.3g}"
    lacking = few + likely + assessment.lacking_for_active(rules)
    if lacking:
        return _wait(state, lacking, rules, now)
    if rules.mode == "manual":
        return state, "everything is proven: waits for a person to promote it"
    return _enter(state, "active", now), "everything is proven"


def _active(state: GateState, _: Evidence, assessment: Assessment, rules: Rules, now: float) -> Next:
    """Drift in speed is shown, not acted upon: what was active before may be no better on the traffic of now."""
    if rules.mode != "off" and (wrong := assessment.incorrect()):
        return _enter(state, "rolled_back", now), f"answers are wrong or the engine fails: {_list(wrong)}"
    return state, "active"


def _paused(state: GateState, _: Evidence, assessment: Assessment, rules: Rules, now: float) -> Next:
    if failed := assessment.failed():
        return _enter(state, "rejected", now), f"proven worse: {_list(failed)}"
    if _too_old(state, rules, now):
        return _enter(state, "expired", now), f"nobody took it up within {_age(rules)}"
    return state, "paused until a person resumes or promotes it"


def _end(state: GateState, _evidence: Evidence, _assessment: Assessment, _rules: Rules, _now: float) -> Next:
    return state, f"{state.phase}: only a person can hand it in again"


def _wait(state: GateState, lacking: Sequence[str | Finding], rules: Rules, now: float) -> Next:
    """Inconclusive never promotes: it waits, and then it is paused."""
    if _too_old(state, rules, now):
        return _enter(state, "paused", now), f"inconclusive after {_age(rules)}; lacking: {_list(lacking)}"
    return state, f"lacking: {_list(lacking)}"


_MOVES: dict[Phase, Callable[[GateState, Evidence, Assessment, Rules, float], Next]] = {
    "draft": _draft,
    "validated": _validated,
    "shadow": _shadow,
    "canary": _canary,
    "active": _active,
    "paused": _paused,
    "rejected": _end,
    "rolled_back": _end,
    "superseded": _end,
    "expired": _end,
}

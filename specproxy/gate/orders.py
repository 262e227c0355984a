"""The moves that a person makes, and those that come with another revision's."""

from __future__ import annotations

from typing import Literal

from msgspec.structs import replace

from specproxy.errors import IllegalMove
from specproxy.gate.assessment import assess
from specproxy.gate.evidence import Evidence
from specproxy.gate.rules import Rules
from specproxy.gate.states import ENDS, GateState, Move, Phase

Order = Literal["promote", "pause", "resume", "rollback", "resubmit"]

FROM: dict[Order, frozenset[Phase]] = {
    "promote": frozenset({"shadow", "canary", "paused"}),
    "pause": frozenset({"validated", "shadow", "canary"}),
    "resume": frozenset({"paused"}),
    "rollback": frozenset({"shadow", "canary", "paused", "active"}),
    "resubmit": ENDS,
}
"""Order → phases in which it can be given."""


def obey(
    order: Order,
    state: GateState,
    evidence: Evidence,
    rules: Rules,
    now: float,
    *,
    reason: str,
    force: bool = False,
) -> Move:
    """The move that a person orders at the Unix time ``now``.

    ``promote`` asks for the same proofs as the gate does; ``force`` goes without those that are still open, never over
    a proof of harm. ``resume`` begins at the first canary step. ``resubmit`` begins anew: with it store
    ``no_evidence``. Raises IllegalMove, with what is missing.
    """
    if not reason.strip():
        raise IllegalMove(f"{order} needs a reason: the audit log keeps it", param="reason")
    if state.phase not in FROM[order]:
        wanted = ", ".join(sorted(FROM[order]))
        raise IllegalMove(f"{order} of {_name(state)}: it is {state.phase}; expected {wanted}")
    assessment = assess(evidence, rules)
    if order == "promote":
        if failed := assessment.failed():
            raise IllegalMove(f"promote of {_name(state)}: proven worse: {'; '.join(map(str, failed))}")
        lacking = [] if force else assessment.lacking_for_active(rules)
        if lacking:
            raise IllegalMove(f"promote of {_name(state)}: not proven yet: {'; '.join(lacking)}; force goes without")
        reason = f"{reason} (forced)" if force else reason
    phases: dict[Order, Phase] = {"promote": "active", "pause": "paused", "rollback": "rolled_back"}
    target = (state.paused_from or "shadow") if order == "resume" else phases.get(order, "draft")
    after = replace(
        state,
        phase=target,
        entered=now,
        step=0,
        step_from=0 if order == "resubmit" else evidence.live.num_candidate,
        paused_from=state.phase if order == "pause" else None,
        replaced=None if order == "resubmit" else state.replaced,
    )
    return Move(state, after, reason, assessment)


def supersede(state: GateState, by: str, now: float) -> Move:
    """A newer revision takes the place of this one. Raises IllegalMove where it is at an end already."""
    if state.phase in ENDS:
        raise IllegalMove(f"supersede {_name(state)}: it is {state.phase} already")
    return Move(state, _to(state, "superseded", now), f"superseded by {by[:12]}", None)


def hand_over(promotion: Move, serving: GateState | None, now: float) -> list[Move]:
    """A move to ``active``, with what it does to the revision that serves now; to be written as one."""
    if serving is None:
        return [promotion]
    after = replace(promotion.after, replaced=serving.revision)
    return [supersede(serving, promotion.after.revision, now), replace(promotion, after=after)]


def hand_back(rollback: Move, previous: GateState | None, now: float) -> list[Move]:
    """A move from ``active`` to ``rolled_back``, with the revision that serves again; to be written as one.

    Raises IllegalMove where ``previous`` was not superseded: a revision that was rolled back does not serve again.
    """
    if previous is None:
        return [rollback]
    if previous.phase != "superseded":
        raise IllegalMove(f"{_name(previous)} cannot serve again: it is {previous.phase}; expected superseded")
    back = Move(previous, _to(previous, "active", now), f"{rollback.after.revision[:12]} was rolled back", None)
    return [rollback, back]


def _to(state: GateState, phase: Phase, now: float) -> GateState:
    return replace(state, phase=phase, entered=now, step=0, step_from=0, paused_from=None)


def _name(state: GateState) -> str:
    return f"{state.route} {state.revision[:12]}"

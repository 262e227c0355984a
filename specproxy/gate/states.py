"""Where a revision of a route stands on its way to being active."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from specproxy.gate.assessment import Assessment
from specproxy.gate.rules import Rules

Phase = Literal[
    "draft",
    "validated",
    "shadow",
    "canary",
    "active",
    "paused",
    "rejected",
    "rolled_back",
    "superseded",
    "expired",
]
"""``draft → validated → shadow → canary → active``, or beside that way. ``paused`` waits for a person; the last four
are ends, which only a person's word with a reason leads out of."""

ENDS: frozenset[Phase] = frozenset({"rejected", "rolled_back", "superseded", "expired"})


class GateState(Struct, frozen=True):
    """One (route, revision). Unix seconds; ``entered``: the phase. ``step`` indexes the canary's shares and
    ``step_from`` is how many answers the candidate had served live when the step began. ``paused_from``: where a
    resumed candidate goes on. ``replaced``: the revision that was active before this one. ``version`` grows with each
    write."""

    route: str
    revision: str
    phase: Phase
    created: float
    entered: float
    step: int = 0
    step_from: int = 0
    paused_from: Phase | None = None
    replaced: str | None = None
    version: int = 0

    def share(self, rules: Rules) -> float:
        """The share of the route's conversations that this revision serves, the hold-out apart."""
        if self.phase == "canary":
            return rules.canary[self.step]
        return 1.0 if self.phase == "active" else 0.0


def new_state(route: str, revision: str, now: float) -> GateState:
    """A candidate that was just handed in."""
    return GateState(route, revision, "draft", created=now, entered=now)


class Move(Struct, frozen=True):
    """From one state to the next (the same one, where nothing moves), why, and what was known (``None``: evidence had
    no say)."""

    before: GateState
    after: GateState
    reason: str
    evidence: Assessment | None = None

    @property
    def changed(self) -> bool:
        """Whether anything moves."""
        return self.before != self.after

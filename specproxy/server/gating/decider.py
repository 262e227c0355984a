"""Which arm serves a request, and what that arm decides. The hot path: nothing here waits."""

from __future__ import annotations

from msgspec.structs import replace

from specproxy.gate.canary import arm_of
from specproxy.policy.facts import Facts
from specproxy.policy.policy import Verdict
from specproxy.server.gating.book import Book, Change
from specproxy.server.gating.contents import route_of
from specproxy.server.gating.kills import mute, plain
from specproxy.vocabulary import Decision

ACTIVE, CANDIDATE, HOLD_OUT, OVERRIDE = "active", "candidate", "plain", "override"
"""Arms, as a decision and its record carry them. A request that chose its own speculation is evidence for nothing."""

IN_HOLD_OUT = "in the hold-out, which is served plain to measure the speed-up (hold_out)"
NOT_PROVEN = "the drafter's weights are not those that the gate let pass"


class Decider:
    """Decides by what is active, then by the arm. ``uncovered``: routes whose traffic a linked change would move, as
    requests since have shown."""

    def __init__(self, book: Book) -> None:
        self._book = book
        self.uncovered: set[str] = set()

    def decide(self, facts: Facts) -> Verdict:
        """What holds for a request. Raises InvalidRequest as a policy set does."""
        book = self._book
        verdict = book.serving.decide(facts)
        name = verdict.decision.route
        change = book.change
        if change is not None and change.linked:
            self._watch_flow(change, facts, name)
        if verdict.overridden:
            return self._arm(verdict, OVERRIDE)
        route = route_of(book.serving, name)
        hold_out = 0.0 if route is None or not verdict.decision.drafters else route.effective.settings.hold_out
        share = 0.0 if change is None else change.share_of(name)
        salt = change.salt_of(name) if change is not None and share else None
        arm = arm_of(name, f"{facts.api_key}\0{facts.conversation}", hold_out=hold_out, candidate=salt, share=share)
        if arm == "plain":
            return self._arm(replace(verdict, decision=plain(verdict.decision, IN_HOLD_OUT)), HOLD_OUT)
        if arm == "candidate" and change is not None:
            return self.candidate(change, facts)
        return self._arm(verdict, ACTIVE)

    def candidate(self, change: Change, facts: Facts) -> Verdict:
        """What a change's candidates decide. Raises InvalidRequest."""
        return self._arm(change.policies.decide(facts), CANDIDATE)

    def active(self, facts: Facts) -> Verdict:
        """What serves, whatever arm the conversation is in. Raises InvalidRequest."""
        return self._arm(self._book.serving.decide(facts), ACTIVE)

    def _arm(self, verdict: Verdict, arm: str) -> Verdict:
        """The verdict with its arm, under the revision by which the gate knows it, without what is off."""
        book, decision = self._book, verdict.decision
        member = book.change.members.get(decision.route) if book.change and arm == CANDIDATE else None
        known = member or book.active.get(decision.route)
        if known is not None:
            decision = replace(decision, revision=known.revision)
            if member is None and known.rules.mode != "off":
                decision = self._proven(decision)
        return replace(verdict, decision=mute(replace(decision, arm=arm), book.kills))

    def _proven(self, decision: Decision) -> Decision:
        """Without drafters whose weights were changed behind the gate's back: those are a candidate's."""
        drifted = self._book.drifted.get(decision.route, ())
        left = tuple(name for name in decision.drafters if name not in drifted)
        if left == decision.drafters:
            return decision
        return replace(decision, drafters=left) if left else plain(decision, NOT_PROVEN)

    def _watch_flow(self, change: Change, facts: Facts, name: str) -> None:
        other = change.policies.route_for(facts)[0].name
        if other != name:
            self.uncovered |= {name, other} - change.members.keys() - set(change.removed)

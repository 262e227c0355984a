"""What a kill switch leaves of a decision: speculation off by hand or by a hard mismatch, whatever the gate says."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from specproxy.gate.kills import Kill
from specproxy.vocabulary import Decision


def mute(decision: Decision, kills: Iterable[Kill]) -> Decision:
    """``decision`` without the drafters that are off."""
    for kill in kills:
        if decision.drafters and kill.covers(decision.route):
            left = () if kill.drafter is None else tuple(n for n in decision.drafters if n != kill.drafter)
            reason = f"switched off by {kill.actor}: {kill.reason}"
            decision = plain(decision, reason) if not left else msgspec.structs.replace(decision, drafters=left)
    return decision


def plain(decision: Decision, reason: str) -> Decision:
    """The decision to draft nothing."""
    return msgspec.structs.replace(
        decision, drafters=(), auto=False, k_min=0, k_max=0, adaptive=False, reason=decision.reason or reason
    )

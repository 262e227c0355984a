"""What the gate shows to whoever looks after the server without its admin API: /ready and /metrics."""

from __future__ import annotations

import math
from typing import Any

from specproxy.server.gating.gate import Gate
from specproxy.server.metrics import SHORT_REVISION, Metrics


def ready_details(gate: Gate) -> dict[str, Any]:
    """The policy part of /ready: what serves, what is on its way, what is off, and answers that were wrong."""
    book = gate.book
    members = book.change.members.values() if book.change else ()
    return {
        "revision": book.serving.hash[:SHORT_REVISION],
        "error": gate.policies.error,
        "warnings": list(book.serving.warnings),
        "candidates": [
            {
                "route": member.route,
                "revision": member.revision[:SHORT_REVISION],
                "phase": member.state.phase,
                "share": member.state.share(member.rules),
                "reason": member.reason,
            }
            for member in members
        ],
        "off": book.kills,
        "hard_mismatches": [
            {
                "bundle": name,
                "time": kept.time,
                "route": kept.result.route,
                "drafters": kept.audited.drafted,
                "served": kept.audited.served,
                "positions": [finding.position for finding in kept.result.findings],
            }
            for name, kept in gate.audits.ring.items()
        ],
    }


def show(gate: Gate, metrics: Metrics) -> None:
    """Set the gauges that follow from the gate's state."""
    book = gate.book
    other = 0 if book.serving is gate.policies.current else book.serving.regex_timeouts
    metrics.regex_timeouts.set(gate.policies.regex_timeouts + other)
    metrics.shadow_waiting.set(gate.shadow.waiting + (gate.shadow.running is not None))
    gate.memory.show(gate.backend.hello)
    for gauge in (metrics.phase, metrics.share, metrics.killed, metrics.speedup):
        gauge.clear()
    for tracked in book.tracked():
        revision = tracked.revision[:SHORT_REVISION]
        metrics.phase.labels(tracked.route, revision, tracked.state.phase).set(1)
        metrics.share.labels(tracked.route, revision).set(tracked.state.share(tracked.rules))
    for kill in book.kills:
        metrics.killed.labels(kill.route or "", kill.drafter or "").set(1)
    for route, (_, mean) in gate.samples.speedup.items():
        if mean.n:
            metrics.speedup.labels(route).set(math.exp(mean.mean))

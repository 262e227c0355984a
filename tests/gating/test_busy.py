"""A server that is never idle: shadow work takes its share of the time beside users, and a candidate gets on."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from specproxy.gate.assessment import SPEED, assess
from specproxy.gate.evidence import Evidence, no_evidence
from specproxy.gate.machine import move
from specproxy.gate.rules import Rules
from specproxy.gate.states import GateState
from tests.gating.conftest import NGRAM, OFF, Gated
from tests.gating.streams import Streams
from tests.gating.test_way import WIDE_MARGINS

BUSY = WIDE_MARGINS.replace("shadow: {fraction: 1.0, budget: 1.0}", "shadow: {fraction: 1.0, budget: 0.3}").replace(
    "audit: {fraction: 0.2", "audit: {fraction: 1.0"
)
SHADOW = GateState(route="r", revision="a" * 64, phase="shadow", created=0.0, entered=0.0)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_candidate_leaves_shadow_while_users_always_wait(gated: Gated, eventually: Callable[..., None]) -> None:
    """Streams of two lengths, each followed by the next at once. Pairs are computed and compared beside them, hardly
    any of them timed; their tokens and the audits bring the candidate into its canary, and the log says that live
    traffic has to prove the speed. The streams' text stays the same throughout."""
    assert BUSY.count("budget: 0.3") == 1
    gated.write(OFF, BUSY)
    gated.run()
    streams = [Streams(gated.server.url, {"specproxy": {"shadow": False}, "max_tokens": most}) for most in (400, 270)]
    for conversation in streams:
        conversation.start("one")
    eventually(lambda: gated.server.metric("specproxy_sequences_in_flight") == 2, 60, "both streams")
    gated.write(NGRAM, BUSY)
    eventually(lambda: gated.phases()[1:] == ["shadow"], 60, "the candidate in shadow")
    eventually(lambda: gated.ask() and gated.phases()[1:] == ["canary"], 200, "the candidate in its canary")
    ended = [stream for conversation in streams for stream in conversation.stop()]
    entry = next(entry for entry in gated.log() if entry.after.phase == "canary")
    assert entry.actor == "gate"
    assert "left to live traffic" in entry.reason
    assert entry.findings is not None
    (speed,) = entry.findings.of(SPEED, "shadow")
    assert speed.left_to_live
    assert speed.verdict in ("absent", "open")
    assert gated.server.metric("specproxy_shadow_pairs_total", tokens="identical") >= 4
    assert gated.server.metric("specproxy_shadow_pairs_total", tokens="different") == 0
    assert len(ended) >= 2
    longest = max((stream.text for stream in ended), key=len)
    assert all(longest.startswith(stream.text) for stream in ended)
    assert all(stream.whole for stream in ended)


def clean(rules: Rules, *, timed: int, disturbed: int, gain: float = 0.0) -> Evidence:
    """Audits that suffice, and so many pairs whose speeds differ by ``gain``, and so many that say nothing of it."""
    evidence = no_evidence(rules)
    for _ in range(rules.mismatch.clean_needed):
        evidence.mismatches.add(rules.mismatch, hard=False)
    for number in range(timed):
        evidence.shadow.add_speeds(100.0 * (1 + gain) * (1.01 if number % 2 else 1.0), 100.0)
    evidence.shadow.disturbed = disturbed
    return evidence


@pytest.mark.parametrize(
    ("timed", "disturbed", "gain", "phase"),
    [
        (0, 49, 0.025, "shadow"),
        (0, 50, 0.025, "canary"),
        (60, 50, 0.025, "shadow"),
        (10, 50, 0.025, "canary"),
        (200, 300, -0.3, "rejected"),
        (200, 0, 0.3, "canary"),
    ],
)
def test_speed_is_left_to_live_traffic_where_most_pairs_met_users(
    timed: int, disturbed: int, gain: float, phase: str
) -> None:
    """From the least number of samples on, and only while most pairs say nothing of speed; a speed that is proven worse
    rejects all the same."""
    rules = Rules()
    after = move(SHADOW, clean(rules, timed=timed, disturbed=disturbed, gain=gain), rules, 1.0).after
    assert after.phase == phase


def test_what_is_left_to_live_traffic_is_asked_for_there() -> None:
    """A candidate whose speed was never measured is not promoted on clean answers alone."""
    rules = Rules()
    found = assess(clean(rules, timed=0, disturbed=500), rules)
    assert found.lacking_for_canary() == []
    assert any(lacking.startswith("speed (live)") for lacking in found.lacking_for_active(rules))

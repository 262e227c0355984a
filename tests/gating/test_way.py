"""An edit on its whole way: candidate, shadow, canary, active, with nothing restarted."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from tests.gating.conftest import DEFAULTS, NGRAM, OFF, Gated

SOME_AUDITS = DEFAULTS.replace("audit: {fraction: 1.0", "audit: {fraction: 0.1")


def test_an_edit_becomes_active_by_evidence_alone(gated: Gated, eventually: Callable[..., None]) -> None:
    """Through shadow and canary, each move in the log with what was known; a stream that runs meanwhile ends well, with
    what it began with."""
    gated.write(OFF, SOME_AUDITS)
    gated.run()
    assert gated.phases() == ["active"]
    gated.write(NGRAM, SOME_AUDITS)
    eventually(lambda: gated.phases()[1:] == ["shadow"], 15, "the candidate in shadow")
    assert gated.ask()[0].headers["x-specproxy-drafter"] == "off"
    gated.ask_until(["superseded", "active"])
    moves = [(entry.actor, entry.before, entry.after.phase, entry.after.step) for entry in gated.log()]
    assert moves[2:] == [
        ("file watcher", None, "draft", 0),
        ("gate", "draft", "validated", 0),
        ("gate", "validated", "shadow", 0),
        ("gate", "shadow", "canary", 0),
        ("gate", "canary", "canary", 1),
        ("gate", "active", "superseded", 0),
        ("gate", "canary", "active", 0),
    ]
    promoted = gated.log()[-1]
    assert promoted.findings is not None
    assert {finding.metric for finding in promoted.findings.findings} >= {"speed", "cost", "ttft_p95", "itl_p95"}
    assert gated.verify() == len(moves)
    answer = gated.ask()[0]
    assert answer.headers["x-specproxy-drafter"] == "ngram"
    assert answer.headers["x-specproxy-policy"] == promoted.revision[:12]
    assert gated.server.metric("specproxy_shadow_pairs_total", tokens="different") == 0
    assert gated.server.metric("specproxy_audits_total", verdict="hard") == 0
    assert gated.server.metric("specproxy_engine_starts_total") == 1
    a_stream_keeps_what_it_began_with(gated, eventually)
    a_client_that_stays_out_is_not_computed_again(gated, eventually)


def a_stream_keeps_what_it_began_with(gated: Gated, eventually: Callable[..., None]) -> None:
    """An edit of how the route is watched is at once; the running stream has the earlier revision to its end."""
    ended: list[Any] = []
    stream = threading.Thread(target=lambda: ended.extend(gated.ask(max_tokens=1500)))
    stream.start()
    before = gated.phases()
    gated.write(NGRAM.replace("}}", "}, hold_out: 0.001}"), SOME_AUDITS)
    eventually(lambda: gated.phases() == [*before[:-1], "superseded", "active"], 15, "the edit")
    stream.join(60)
    assert ended[0].json()["usage"]["completion_tokens"] == 1500


def a_client_that_stays_out_is_not_computed_again(gated: Gated, eventually: Callable[..., None]) -> None:
    """By the header that the policy names, or by a field of the body."""
    gated.write(NGRAM.replace("ngram}", "ngram, k: 3}"), SOME_AUDITS)
    eventually(lambda: gated.phases()[-1] == "shadow", 15, "another candidate")
    before = gated.server.metric("specproxy_shadow_pairs_total")
    gated.ask(3, headers={"x-specproxy-no-shadow": "1"})
    gated.ask(3, specproxy={"shadow": False})
    gated.ask(1)
    eventually(lambda: gated.server.metric("specproxy_shadow_pairs_total") == before + 1, 10, "the pair of the other")

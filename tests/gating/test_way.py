"""An edit on its whole way: candidate, shadow, canary, active, with nothing restarted and no stream dropped.

Every margin is so wide that no machine, however busy, misses it: how soon the candidate is proven depends on numbers of
answers alone. What margins do: ``tests/gate``.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from tests.gating.conftest import DEFAULTS, NGRAM, OFF, Gated
from tests.gating.streams import Streams, read

WIDE = 1_000_000
WIDE_MARGINS = (
    DEFAULTS.replace("min_gain: 3", f"min_gain: {WIDE}")
    .replace("ttft_p95: 20, itl_p95: 20, cost: 20", f"ttft_p95: {WIDE}, itl_p95: {WIDE}, cost: {WIDE}")
    .replace("audit: {fraction: 1.0", "audit: {fraction: 0.2")
    .replace("canary: [0.5, 1.0]", "canary: [0.25, 0.5]")
)
PORTION, MOST = 20, 100
"""Requests asked at a time, and how often at most."""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_an_edit_becomes_active_by_evidence_alone(gated: Gated, eventually: Callable[..., None]) -> None:
    """Through shadow and canary, each move in the log with what was known; streams that run across the switch end well,
    with what they began with."""
    gated.write(OFF, WIDE_MARGINS)
    gated.run()
    assert gated.phases() == ["active"]
    text = read(gated.server.url, "before").text
    gated.write(NGRAM, WIDE_MARGINS)
    eventually(lambda: gated.phases()[1:] == ["shadow"], 60, "the candidate in shadow")
    assert gated.ask()[0].headers["x-specproxy-drafter"] == "off"
    ask_until(gated, lambda: gated.candidates()[0]["share"] == 0.5, settle=True)
    streams, old = streams_of_both_arms(gated)
    ask_until(gated, lambda: gated.phases() == ["superseded", "active"], settle=False)
    ended = streams.stop()
    check_log(gated)
    promoted = gated.log()[-1]
    assert all(stream.whole and stream.text == text for stream in ended)
    across = {stream.revision for stream in ended if stream.began < promoted.time < stream.ended}
    assert across == {old, promoted.revision[:12]}
    answer = gated.ask()[0]
    assert answer.headers["x-specproxy-drafter"] == "ngram"
    assert answer.headers["x-specproxy-policy"] == promoted.revision[:12]
    assert gated.server.metric("specproxy_shadow_pairs_total", tokens="different") == 0
    assert gated.server.metric("specproxy_audits_total", verdict="hard") == 0
    a_stream_keeps_what_it_began_with(gated, eventually)
    a_client_that_stays_out_is_not_computed_again(gated, eventually)
    a_conversation_is_replayed(gated, eventually)
    assert gated.server.metric("specproxy_engine_starts_total") == 1


def ask_until(gated: Gated, reached: Callable[[], bool], *, settle: bool) -> None:
    """Ask in small portions, with shadow work in between or not, until it is so."""
    for _ in range(MOST):
        if reached():
            return
        gated.ask_together(PORTION)
        if settle:
            gated.settle()
    raise AssertionError(f"{gated.phases()} after {MOST * PORTION} requests: {gated.candidates()}")


def streams_of_both_arms(gated: Gated) -> tuple[Streams, str]:
    """Streams of two conversations of each arm, at the canary's last step, so that at every moment one of each arm runs
    at least; and the first digits of the revision that serves still."""
    old = gated.get("/routes/default/revisions")["revisions"][0]["revision"][:12]
    keys: dict[bool, list[str]] = {True: [], False: []}
    for key in map(str, range(64)):
        mine = keys[gated.ask(prompt_cache_key=key)[0].headers["x-specproxy-policy"] == old]
        mine += [key] if len(mine) < 2 else []
        if all(len(found) == 2 for found in keys.values()):
            break
    streams = Streams(gated.server.url)
    for key in keys[True] + keys[False]:
        streams.start(key)
    return streams, old


def check_log(gated: Gated) -> None:
    """Every phase in its order, moved by the gate alone, on findings of every kind; and the chain holds."""
    log = gated.log()
    assert [(entry.actor, entry.before, entry.after.phase, entry.after.step) for entry in log[2:]] == [
        ("file watcher", None, "draft", 0),
        ("gate", "draft", "validated", 0),
        ("gate", "validated", "shadow", 0),
        ("gate", "shadow", "canary", 0),
        ("gate", "canary", "canary", 1),
        ("gate", "active", "superseded", 0),
        ("gate", "canary", "active", 0),
    ]
    findings = log[-1].findings
    assert findings is not None
    proven = {finding.metric for finding in findings.findings if finding.verdict == "pass"}
    assert proven >= {"mismatches", "speed", "cost", "ttft_p95", "itl_p95", "engine_errors"}
    shown = {(finding.metric, finding.place): (finding.mine, finding.other) for finding in findings.findings}
    assert shown["memory", "shadow"] == (0, 0), "prompt lookup holds nothing beside the target"
    mine, other = shown["accepted_length", "shadow"]
    assert mine is not None and other is not None  # noqa: PT018 - for the type checker
    assert mine > other == 1
    assert gated.verify() == len(log)


def a_stream_keeps_what_it_began_with(gated: Gated, eventually: Callable[..., None]) -> None:
    """An edit of how the route is watched is at once; the running stream has the earlier revision to its end."""
    ended: list[Any] = []
    before, revision = gated.phases(), gated.log()[-1].revision
    stream = threading.Thread(target=lambda: ended.extend(gated.ask(max_tokens=1500)))
    stream.start()
    eventually(lambda: gated.server.metric("specproxy_sequences_in_flight") > 0, 60, "the stream")
    gated.write(NGRAM.replace("}}", "}, hold_out: 0.001}"), WIDE_MARGINS)
    eventually(lambda: gated.phases() == [*before[:-1], "superseded", "active"], 60, "the edit")
    stream.join(120)
    assert ended[0].json()["usage"]["completion_tokens"] == 1500
    assert ended[0].headers["x-specproxy-policy"] == revision[:12] != gated.log()[-1].revision[:12]


def a_client_that_stays_out_is_not_computed_again(gated: Gated, eventually: Callable[..., None]) -> None:
    """By the header that the policy names, or by a field of the body."""
    gated.write(NGRAM.replace("ngram}", "ngram, k: 3}"), WIDE_MARGINS)
    eventually(lambda: gated.phases()[-1] == "shadow", 60, "another candidate")
    gated.settle()
    before = gated.server.metric("specproxy_shadow_pairs_total")
    gated.ask(3, headers={"x-specproxy-no-shadow": "1"})
    gated.ask(3, specproxy={"shadow": False})
    gated.ask(1)
    eventually(lambda: gated.server.metric("specproxy_shadow_pairs_total") == before + 1, 60, "the pair of the other")


def a_conversation_is_replayed(gated: Gated, eventually: Callable[..., None]) -> None:
    """Of several turns: in both arms, each compared with the text that was served; a figure of its own."""
    turns = [("user", "old and new"), ("assistant", "old, then new"), ("user", "and then old again")]
    messages = [{"role": role, "content": content} for role, content in turns]
    gated.ask(messages=messages)
    gated.settle()
    for arm in ("active", "candidate"):
        assert gated.server.metric("specproxy_conversation_replays_total", arm=arm, text="identical") == 1
    assert gated.server.metric("specproxy_conversation_replays_total", text="different") == 0
    eventually(lambda: seen_of(gated, "stability") == (1, 1, 1), 60, "the figure, when the gate looks again")


def seen_of(gated: Gated, metric: str) -> tuple[float, int, int]:
    """The candidate's figure in shadow: its margin, and how often it was seen of each arm."""
    figures = gated.get("/status")["routes"][0]["candidate"]["figures"]
    found = {figure["finding"]["metric"]: figure for figure in figures if figure["finding"]["place"] == "shadow"}
    seen = found[metric]["finding"]
    return found[metric]["margin"], seen.get("candidate", 0), seen.get("control", 0)

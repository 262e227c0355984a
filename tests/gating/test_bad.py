"""Candidates that must not serve, each stopped by its own rule in a server as it is run. The same rules in numbers, and
the pause of what stays inconclusive: ``test_moves``, ``test_intake``, ``test_crash``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.gating.conftest import DEFAULTS, NGRAM, OFF, Gated

DRAFTER = """\
import os, signal, time
from specproxy.drafters.ngram import NgramDrafter, NgramOptions

class Bad(NgramDrafter):
    def propose(self, ctx, out):
        {deed}
        super().propose(ctx, out)

def load(name, options, host):
    return Bad(name, NgramOptions())
"""
REPEATING: dict[str, Any] = {"messages": [{"role": "user", "content": "again and again " * 8}], "max_tokens": 500}
"""Most tokens of this answer are drafted and accepted."""

CHAT = "routes:\n  - {name: chat, match: {temperature: {lt: 0.5}}, speculate: {drafters: ngram}}\n"
TWO = CHAT + "  - {name: default, speculate: off}\n"


def load_bad_drafter(gated: Gated, folder: Path, deed: str) -> None:
    """A drafter from elsewhere, which does this whenever it is asked for a guess."""
    info = folder / "plugin" / "bad-1.0.dist-info"
    info.mkdir(parents=True)
    (folder / "plugin" / "bad_drafter_of_tests.py").write_text(DRAFTER.format(deed=deed))
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: bad\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[specproxy.drafters]\nbad = bad_drafter_of_tests:load\n")
    gated.env["PYTHONPATH"] = str(folder / "plugin")
    gated.flags = ("--drafter", "bad=bad")


def ask_until(gated: Gated, reached: Callable[[], bool], **fields: Any) -> None:
    """One request after another, with shadow work in between, until it is so."""
    for _ in range(50):
        if reached():
            return
        gated.ask(**fields)
        gated.settle()
    raise AssertionError(f"{gated.phases()} after 50 requests: {gated.candidates()}")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_flipped_tokens_are_found_by_shadow_pairs_and_by_audits(gated: Gated, eventually: Callable[..., None]) -> None:
    """One accepted token in 500 is enough. In shadow the candidate is rejected; where a person forced it to serve, an
    audit switches its drafter off, tells, and what served before serves again."""
    gated.env["UNSAFE_TEST_FAULTS"] = "flip_token:500"
    gated.write(OFF)
    gated.run()
    gated.write(NGRAM)
    eventually(lambda: gated.phases() == ["active", "shadow"], 15, "the candidate in shadow")
    ask_until(gated, lambda: gated.phases() == ["active", "rejected"], **REPEATING)
    assert gated.server.events("shadow pair differs")
    gated.write(NGRAM.replace("ngram}", "ngram, k: 4}"))
    eventually(lambda: gated.phases()[2:] == ["shadow"], 15, "the second candidate in shadow")
    gated.order("promote", reason="I know better", force=True)
    ask_until(gated, lambda: gated.phases()[2:] == ["rolled_back"], **REPEATING)
    assert gated.phases()[0] == "active"
    policy = gated.server.ready()["policy"]
    assert [(kill["route"], kill["drafter"], kill["actor"]) for kill in policy["off"]] == [
        ("default", "ngram", "audit")
    ]
    assert policy["hard_mismatches"][-1]["served"]
    assert gated.server.metric("specproxy_hard_mismatches_total", route="default", drafter="ngram") >= 1
    alarm = [event for event in gated.server.events("hard mismatch: an answer is not the target's") if event["served"]]
    assert alarm[0]["findings"][0]["expected"] != alarm[0]["findings"][0]["served"]
    assert gated.ask()[0].headers["x-specproxy-drafter"] == "off"
    bundle = gated.get(f"/bundles/{policy['hard_mismatches'][-1]['bundle']}")
    assert bundle["route"] == "default"
    assert bundle["output"]
    assert gated.verify() == len(gated.log())


@pytest.mark.slow
def test_a_drafter_that_crashes_the_engine_never_meets_a_user(
    gated: Gated, tmp_path: Path, eventually: Callable[..., None]
) -> None:
    """One death in shadow rejects it; the engine comes back, and users' answers are what they were."""
    load_bad_drafter(gated, tmp_path, "os.kill(os.getpid(), signal.SIGSEGV)")
    gated.write(OFF)
    gated.run()
    gated.write(OFF.replace("off", "{drafters: bad}"))
    eventually(lambda: gated.phases() == ["active", "shadow"], 15, "the candidate in shadow")
    before = gated.ask(prompt_number=1)[0].json()["choices"][0]["message"]["content"]
    eventually(lambda: gated.phases() == ["active", "rejected"], 15, "the rejection")
    assert "engine_errors" in gated.candidates()[0]["reason"]
    assert gated.ask(prompt_number=1)[0].json()["choices"][0]["message"]["content"] == before
    eventually(lambda: gated.server.ready()["status"] == "ready", 30, "the engine")
    assert gated.server.metric("specproxy_engine_starts_total") == 2


@pytest.mark.slow
def test_a_drafter_that_slows_the_route_never_meets_a_user(
    gated: Gated, tmp_path: Path, eventually: Callable[..., None]
) -> None:
    """Pairs in shadow prove it slower, and it is rejected for its speed alone: its answers are right."""
    load_bad_drafter(gated, tmp_path, "time.sleep(0.05)")
    faster = DEFAULTS.replace("goal: no_worse", "goal: faster").replace("min_gain: 3", "min_gain: 0.03")
    gated.write(OFF, faster)
    gated.run()
    gated.write(OFF.replace("off", "{drafters: bad, k: 4}"), faster)
    eventually(lambda: gated.phases() == ["active", "shadow"], 30, "the candidate in shadow")
    for _ in range(20):
        if gated.phases() != ["active", "shadow"]:
            break
        assert {answer.headers["x-specproxy-drafter"] for answer in gated.ask_together(10)} == {"off"}
        gated.settle()
    assert gated.phases() == ["active", "rejected"]
    reason = gated.log()[-1].reason
    assert reason.startswith("proven worse: speed (shadow) -")
    assert "mismatches" not in reason
    assert gated.server.metric("specproxy_shadow_pairs_total", tokens="different") == 0


@pytest.mark.slow
def test_a_match_that_takes_another_routes_traffic_is_judged_as_a_change_of_both(
    gated: Gated, eventually: Callable[..., None]
) -> None:
    """``plan`` says whose requests would move; both routes are candidates, and what the moved requests would get stops
    both."""
    gated.env["UNSAFE_TEST_FAULTS"] = "flip_token:3"
    gated.write(TWO)
    gated.run()
    gated.ask(5, temperature=0.7)
    wider = TWO.replace("lt: 0.5", "lt: 0.9")
    planned = gated.post("/plan", {"files": {"all.yaml": DEFAULTS + wider}})
    assert [(flow["before"], flow["after"], flow["requests"]) for flow in planned["flows"]] == [("default", "chat", 5)]
    gated.write(wider)
    both = ("chat", "default")
    eventually(lambda: all(gated.phases(route) == ["active", "shadow"] for route in both), 30, "both in shadow")
    eventually(
        lambda: (
            {a.headers["x-specproxy-route"] for a in gated.ask(4, temperature=0.7, max_tokens=40)} == {"default"}
            and all(gated.phases(route) == ["active", "rejected"] for route in both)
        ),
        90,
        "the rejection of both",
    )
    assert gated.server.metric("specproxy_shadow_pairs_total", route="default", tokens="different") > 0
    assert gated.server.metric("specproxy_hard_mismatches_total", drafter="off") == 0

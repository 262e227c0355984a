"""Candidates that must not serve, each stopped by its own rule. A slower one: ``test_moves``; a match that moves the
traffic of another route: ``test_intake``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.gating.conftest import NGRAM, OFF, Gated

CRASHER = """\
import os, signal
from specproxy.drafters.ngram import NgramDrafter, NgramOptions

class Crasher(NgramDrafter):
    def propose(self, ctx, out):
        os.kill(os.getpid(), signal.SIGSEGV)

def load(name, options, host):
    return Crasher(name, NgramOptions())
"""


def test_flipped_tokens_are_found_by_shadow_pairs_and_by_audits(gated: Gated, eventually: Callable[..., None]) -> None:
    """In shadow the candidate is rejected; where a person forced it to serve, an audit switches its drafter off, tells,
    and what served before serves again."""
    gated.env["UNSAFE_TEST_FAULTS"] = "flip_token:25"
    gated.write(OFF)
    gated.run()
    gated.write(NGRAM)
    eventually(lambda: gated.phases() == ["active", "shadow"], 15, "the candidate in shadow")
    eventually(lambda: gated.ask(4, max_tokens=24) and gated.phases() == ["active", "rejected"], 40, "the rejection")
    assert gated.server.events("shadow pair differs")
    gated.write(NGRAM.replace("ngram}", "ngram, k: 4}"))
    eventually(lambda: gated.phases()[2:] == ["shadow"], 15, "the second candidate in shadow")
    gated.order("promote", reason="I know better", force=True)
    eventually(lambda: gated.ask(4, max_tokens=24) and gated.phases()[2:] == ["rolled_back"], 40, "the rollback")
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


def test_a_drafter_that_crashes_the_engine_never_meets_a_user(
    gated: Gated, tmp_path: Path, eventually: Callable[..., None]
) -> None:
    """One death in shadow rejects it; the engine comes back, and users' answers are what they were."""
    plugin = tmp_path / "plugin"
    (plugin / "crasher-1.0.dist-info").mkdir(parents=True)
    (plugin / "crasher_of_tests.py").write_text(CRASHER)
    (plugin / "crasher-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: crasher\nVersion: 1.0\n")
    (plugin / "crasher-1.0.dist-info" / "entry_points.txt").write_text(
        "[specproxy.drafters]\ncrasher = crasher_of_tests:load\n"
    )
    gated.env["PYTHONPATH"] = str(plugin)
    gated.flags = ("--drafter", "crasher=crasher")
    gated.write(OFF)
    gated.run()
    gated.write(OFF.replace("off", "{drafters: crasher}"))
    eventually(lambda: gated.phases() == ["active", "shadow"], 15, "the candidate in shadow")
    before = gated.ask(prompt_number=1)[0].json()["choices"][0]["message"]["content"]
    eventually(lambda: gated.phases() == ["active", "rejected"], 15, "the rejection")
    assert "engine_errors" in gated.candidates()[0]["reason"]
    assert gated.ask(prompt_number=1)[0].json()["choices"][0]["message"]["content"] == before
    eventually(lambda: gated.server.ready()["status"] == "ready", 30, "the engine")
    assert gated.server.metric("specproxy_engine_starts_total") == 2

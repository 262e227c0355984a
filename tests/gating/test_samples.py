"""Answers as evidence."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from specproxy.bundle import AuditBundle, AuditResult, Finding
from specproxy.errors import StoreDamaged
from specproxy.gate.assessment import ACCEPTED_LENGTH, MEMORY, assess
from specproxy.server.gating.audits import Audited, Audits
from specproxy.server.gating.ledger import Ledger
from specproxy.server.gating.memory import MemoryGauge, held
from specproxy.server.gating.samples import Partners, Sample, Samples
from specproxy.server.metrics import Metrics
from specproxy.vocabulary import Decision, DrafterInfo, Numerics, SamplingParams
from specproxy.wire.frames import Audit
from tests.gating.conftest import HELLO
from tests.gating.desk import Clock, Desk, only, policy, prove

FAST = Sample("default", "", "candidate", 100, 1.0, 0.02, 200.0, 0.005, 0.1)
SLOW = replace(FAST, arm="active", tokens_per_s=100.0, cost_s=0.2)
NUMERICS = Numerics("f", "cpu", "bfloat16", "2", "bitwise", [1], 64, 1, 1, "fused")


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    """A candidate in canary."""
    made = await Desk(tmp_path).open(policy(only("off")))
    await made.edit(policy(only("{drafters: ngram}")))
    prove(made.member(), shadow=300, clean=299)
    await made.moves.tick()
    yield made
    await made.close()


def test_partners_are_of_one_stratum_and_time_and_used_once() -> None:
    """An answer under load, or of long ago, is compared with none that is not."""
    clock = Clock()
    partners = Partners(clock)
    assert partners.meet(SLOW, "candidate", "active") is None
    assert partners.meet(replace(FAST, load=9.0), "candidate", "active") is None
    assert partners.meet(FAST, "candidate", "active") == (FAST, SLOW)
    assert partners.meet(FAST, "candidate", "active") is None
    clock.now += 601
    assert partners.meet(SLOW, "candidate", "active") is None


async def test_live_answers_of_both_arms_become_pairs_and_tails(desk: Desk) -> None:
    """Speed and cost in pairs, latencies on their own, failures of the candidate as engine errors."""
    samples, live = Samples(desk.book), desk.member().evidence.live
    for sample in (SLOW, FAST, replace(FAST, failed=True)):
        samples.take(sample)
    assert (live.num_candidate, live.num_control, live.engine_errors) == (2, 1, 1)
    assert live.speed.n == live.cost.n == 1
    assert live.speed.mean == pytest.approx(0.693, abs=0.001)
    assert (live.tails["ttft_p95"].num_candidate, live.tails["ttft_p95"].num_control) == (1, 1)
    samples.take(replace(FAST, arm="override"))
    assert live.num_candidate == 2


async def test_what_explains_a_speed_is_shown_beside_it_and_judged_by_no_rule(desk: Desk) -> None:
    """Tokens of a step of each arm, and what its drafters hold; without a margin they prove and lack nothing."""
    samples, member = Samples(desk.book), desk.member()
    before = assess(member.evidence, member.rules).lacking_for_active(member.rules)
    for number in range(3):
        samples.take(replace(FAST, tokens=100, steps=40 + number))
        samples.take(replace(SLOW, tokens=100, steps=100))
    member.evidence.shadow.candidate_work.add(100, 50, 3_000_000)
    member.evidence.shadow.control_work.add(100, 100, 2_000_000)
    found = assess(member.evidence, member.rules)
    (length,), (memory,) = found.of(ACCEPTED_LENGTH, "live"), found.of(MEMORY)
    assert (length.mine, length.other, length.candidate) == (300 / 123, 1.0, 3)
    assert (memory.mine, memory.other, memory.estimate) == (3_000_000, 2_000_000, 0.5)
    assert str(memory) == "memory (shadow) 3.00 MB against 2.00 MB +50.00%, n = 1"
    assert {length.verdict, memory.verdict} == {"open"}
    named = " ".join(found.lacking_for_active(member.rules))
    assert before
    assert ACCEPTED_LENGTH not in named
    assert MEMORY not in named


def test_memory_of_an_arm_is_what_its_drafters_were_loaded_with() -> None:
    """Of all that the decision may use, weights and KV; the gauge has those that are loaded now."""
    infos = [
        DrafterInfo("model", "draft_model", 15, None, "m1", 700, 30),
        DrafterInfo("ngram", "ngram", 63, None, "n1"),
    ]
    hello, metrics = replace(HELLO, drafters=infos), Metrics()
    decision = Decision("default", "a" * 64, drafters=("ngram", "model"))
    assert held(decision, hello) == 730
    assert held(replace(decision, drafters=("ngram",)), hello) == 0
    gauge = MemoryGauge(metrics.registry)
    gauge.show(hello)
    labels = {"drafter": "model", "kind": "kv"}
    assert metrics.registry.get_sample_value("specproxy_drafter_memory_bytes", labels) == 30
    gauge.show(None)
    assert metrics.registry.get_sample_value("specproxy_drafter_memory_bytes", labels) is None


async def test_what_serves_is_compared_with_the_plain_hold_out(desk: Desk) -> None:
    """The honest speed-up, of the revision that serves now alone."""
    samples, revision = Samples(desk.book), desk.book.active["default"].revision
    for _ in range(3):
        samples.take(replace(SLOW, revision=revision, tokens_per_s=150.0))
        samples.take(replace(SLOW, arm="plain", revision=revision))
        samples.take(replace(SLOW, arm="plain", revision="of another time"))
    known, mean = samples.speedup["default"]
    assert (known, mean.n) == (revision, 3)
    assert mean.mean == pytest.approx(0.405, abs=0.001)


async def test_an_answer_counts_once_and_a_wrong_one_is_kept_and_told_of(desk: Desk) -> None:
    """Repeated answers are no new evidence; a hard mismatch is alarm and evidence at once."""
    sent: list[Audit] = []
    told: list[Audited] = []
    audits = Audits(
        desk.book,
        Metrics(),
        lambda frame: sent.append(frame) is None,
        lambda item, _: told.append(item),
        random.Random(1),
    )
    member = desk.member()
    clean = member.evidence.mismatches.clean
    for number, token in enumerate((7, 7, 8)):
        bundle = AuditBundle(
            f"r-{number}", "f", NUMERICS, [1], [token], "length", SamplingParams(), 3, 0, "default", member.revision
        )
        audits.offer(Audited(bundle, "client's", "candidate", ("ngram",), served=True))
        verdict = "hard" if token == 8 else "identical"
        found = (Finding(1, "token", token, 9),) if token == 8 else ()
        audits.take(
            AuditResult(bundle.request_id, 0, "default", member.revision, ("ngram",), verdict, findings=found)  # type: ignore[arg-type]
        )
    assert len(sent) == 3
    assert (member.evidence.mismatches.clean, member.evidence.mismatches.hard) == (clean + 1, 1)
    assert [item.bundle.request_id for item in told] == ["r-2"]
    assert list(audits.ring) == ["r-2"]
    assert (audits.counts["default"].identical, audits.counts["default"].hard) == (2, 1)
    await desk.moves.tick()
    assert await desk.phases() == ["active", "rolled_back"]


async def test_a_state_file_has_one_server(tmp_path: Path) -> None:
    """The second one is told to take a file of its own, and gets the first one's when that has ended."""
    first, second = Ledger(), Ledger()
    await first.open(tmp_path / "gate.db")
    with pytest.raises(StoreDamaged, match="another server"):
        await second.open(tmp_path / "gate.db")
    await first.close()
    await second.open(tmp_path / "gate.db")
    await second.close()

"""Tool calls as evidence."""

from __future__ import annotations

from pathlib import Path

from msgspec.structs import replace

from specproxy.gate.rates import RatePair
from specproxy.server.gating.samples import Samples, sample_of
from specproxy.vocabulary import RequestRecord
from tests.gating.desk import Desk, only, policy, prove

RECORD = RequestRecord("r", "chat", "house", "default", "", "", "active", 1, False, 0.0)


async def test_calls_of_both_arms_count_by_how_they_are_written(tmp_path: Path) -> None:
    """Each call that was not cut short is a good or a bad one of its arm; answers without calls say nothing."""
    desk = await Desk(tmp_path).open(policy(only("off")))
    await desk.edit(policy(only("{drafters: ngram}")))
    prove(desk.member(), shadow=300, clean=299)
    await desk.moves.tick()
    samples, rate = Samples(desk.book), desk.member().evidence.live.rates["tools"]
    verdicts = {"active": ["well-formed"], "candidate": ["well-formed", "malformed", "truncated"]}
    for arm, calls in verdicts.items():
        sample = sample_of(
            replace(RECORD, arm=arm, tool_calls=calls, prompt_tokens=1), tokens_per_s=None, itl_p95_s=None, load=1.0
        )
        samples.take(sample)
        samples.take(replace(sample, called=()))
    assert rate == RatePair(candidate=2, candidate_good=1, control=1, control_good=1)
    await desk.close()

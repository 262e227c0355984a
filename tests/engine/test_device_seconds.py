"""What each sequence cost the device."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from specproxy.vocabulary import Decision, SamplingParams, Submission
from tests.support.driver import Driver


def test_the_shares_of_all_sequences_are_the_time_that_the_engine_worked(
    assemble_engine: Callable[..., Driver],
) -> None:
    """Prompts, steps and drafts of a batch of four, two of which draft."""
    driver = assemble_engine(None)
    driver.engine.times.take()
    decisions = [Decision("r", "r", drafters=("ngram",), k_max=4, adaptive=False), Decision("off", "r")] * 2
    work = [
        Submission(f"s{n}", [5, 6, 7, 8] * 20, n, SamplingParams(temperature=0, max_tokens=20 + n, ignore_eos=True), d)
        for n, d in enumerate(decisions)
    ]
    answers = driver.run(work)
    total = sum(seconds for _, seconds in driver.engine.times.take())
    assert all(answer.stats.device_s > 0 for answer in answers)
    assert sum(answer.stats.device_s for answer in answers) == pytest.approx(total, rel=0.05)

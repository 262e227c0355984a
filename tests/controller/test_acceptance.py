import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specproxy.engine.acceptance import DECAY, PRIOR_STRENGTH, Acceptance


def test_before_any_observation_the_prior_rules() -> None:
    """E[k] is the geometric sum of the prior."""
    expected = Acceptance(0.5).expected(3)
    assert expected[:4] == pytest.approx([0.0, 0.5, 0.75, 0.875])


def test_depths_behind_a_rejection_are_not_blamed() -> None:
    """Chains that always fail at the third draft leave the fourth unknown, and the first two certain."""
    source = Acceptance(0.5)
    for _ in range(200):
        source.observe(6, 2)
    first, second, third = (b - a for a, b in pairwise(source.expected(6)[:4]))
    assert first > 0.95
    assert second / first > 0.95
    assert third / second < 0.1


def test_a_chain_accepted_whole_counts_no_miss() -> None:
    """Where drafted equals accepted nothing was rejected."""
    source = Acceptance(0.2)
    for _ in range(200):
        source.observe(3, 3)
    assert source.expected(3)[3] > 2.9


@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), max_size=60))
def test_estimates_are_probabilities_and_expectations_grow(chains: list[tuple[int, int]]) -> None:
    """E rises with k by at most one a draft, whatever was observed."""
    source = Acceptance(0.6)
    for drafted, accepted in chains:
        source.observe(drafted, min(drafted, accepted))
    expected = source.expected(12)
    steps = [b - a for a, b in pairwise(expected)]
    assert all(0 <= step <= 1 for step in steps)
    assert steps == sorted(steps, reverse=True)
    assert 0 <= source.pool <= 1


def test_a_growing_present_equals_a_shrinking_past() -> None:
    """The estimate is that of plainly decayed counts, also over thousands of observations."""
    source, rng = Acceptance(0.6), random.Random(1)
    hits = misses = 0.0
    for _ in range(3000):
        accepted = rng.random() < 0.7
        hits, misses = hits * DECAY + accepted, misses * DECAY + (not accepted)
        source.observe(1, int(accepted))
    pool = (hits + PRIOR_STRENGTH * 0.6) / (hits + misses + PRIOR_STRENGTH)
    assert source.expected(1)[1] == pytest.approx((hits + PRIOR_STRENGTH * pool) / (hits + misses + PRIOR_STRENGTH))


def test_the_past_is_forgotten() -> None:
    """A hundred observations after a change the old rate is gone; ageing alone leads back to the prior."""
    source = Acceptance(0.5)
    for accepted in [0] * 200 + [4] * 100:
        source.observe(4, accepted)
    assert source.expected(4)[4] > 3.6
    source.age(500)
    assert source.expected(1)[1] == pytest.approx(0.5, abs=0.01)

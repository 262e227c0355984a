"""Rates of two arms, non-inferior by a margin."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from specproxy.gate.rates import RatePair
from specproxy.gate.statistics import log_mixture

ARM = st.integers(1, 300).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n)))


@given(ARM, ARM, st.floats(0, 0.3))
def test_the_evidence_is_the_least_over_all_rates_that_the_hypothesis_allows(
    candidate: tuple[int, int], control: tuple[int, int], margin: float
) -> None:
    """No pair of rates a margin apart has less evidence against it than what is reported, and some has little more."""
    pair = RatePair(*candidate, *control)
    if pair.difference == -margin:
        return
    evidence, _ = pair.evidence(margin)
    grid = margin + (1 - margin) * np.linspace(0.0005, 0.9995, 400)
    tried = [
        log_mixture(candidate[1], candidate[0], rate - margin) + log_mixture(control[1], control[0], rate)
        for rate in [*grid.tolist(), 1.0]
    ]
    assert min(tried) >= evidence - 1e-6
    assert min(tried) <= evidence + 1.0


def test_equal_perfect_arms_pass_with_enough_trials() -> None:
    """At a margin of 0.02 some hundred trials of each arm are needed, and a handful are not enough."""
    assert RatePair(50, 50, 50, 50).verdict(0.02, 0.05, 0.05) == "open"
    assert RatePair(700, 700, 700, 700).verdict(0.02, 0.05, 0.05) == "pass"


def test_a_clear_loss_fails() -> None:
    """Nine in ten against all is beyond any margin of 0.02."""
    assert RatePair(200, 180, 200, 200).verdict(0.02, 0.05, 0.05) == "fail"


def test_a_candidate_without_trials_is_absent() -> None:
    """What did not occur was not tested."""
    assert RatePair(control=10, control_good=10).verdict(0.02, 0.05, 0.05) == "absent"


def test_a_candidate_without_a_control_proves_little() -> None:
    """With no control seen, even a perfect candidate proves nothing, as the control's rate may be anything."""
    assert RatePair(60, 60).verdict(0.02, 0.05, 0.05) == "open"


@pytest.mark.parametrize("margin", [0.0, 0.02, 1.0])
def test_extreme_counts_and_margins_have_a_verdict(margin: float) -> None:
    """All, none, and margins at their ends give finite or infinite evidence, and no error."""
    for candidate, control in ((0, 0), (0, 30), (30, 0), (30, 30)):
        evidence, _ = RatePair(30, candidate, 30, control).evidence(margin)
        assert not math.isnan(evidence)


def test_trials_go_to_their_arm() -> None:
    """Each trial counts once, for its own arm."""
    pair = RatePair()
    pair.add(candidate=True, good=False)
    pair.add(candidate=False, good=True)
    assert pair == RatePair(1, 0, 1, 1)

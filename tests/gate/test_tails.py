"""The 95th percentiles of two arms."""

from __future__ import annotations

import math
from collections.abc import Callable

import msgspec
import numpy as np
import pytest

from specproxy.gate.statistics import evidence_above, evidence_below
from specproxy.gate.tails import BIN, LEAST_SAMPLES, QUANTILE, Tail, bin_of


def correlated(
    rng: np.random.Generator, number: int, ratio: float, noise: float = 0.02
) -> tuple[list[float], list[float]]:
    """Durations of both arms on the same requests: the candidate's are ``ratio`` times the control's, but for noise."""
    base = rng.normal(-2, 0.3, number)
    own, other = noise * rng.normal(size=(2, number))
    return (ratio * np.exp(base + own)).tolist(), np.exp(base + other).tolist()


def paired(rng: np.random.Generator, number: int, ratio: float) -> Tail:
    """A tail of so many pairs, with a margin of 5 %."""
    tail = Tail(0.05)
    for candidate, control in zip(*correlated(rng, number, ratio), strict=True):
        tail.add_pair(candidate, control)
    return tail


def unpaired(rng: np.random.Generator, number: int, ratio: float) -> Tail:
    """A tail of so many values of each arm, with a margin of 5 %."""
    tail = Tail(0.05)
    for candidate, control in np.exp(rng.normal(-2, 0.1, (number, 2))).tolist():
        tail.add(ratio * candidate, candidate=True)
        tail.add(control, candidate=False)
    return tail


@pytest.mark.parametrize("make", [paired, unpaired])
def test_an_equal_candidate_passes_and_a_slow_one_fails(
    make: Callable[[np.random.Generator, int, float], Tail],
) -> None:
    """Within the margin passes, far beyond it fails, and at the margin stays open."""
    rng = np.random.default_rng(3)
    verdicts = [make(rng, 3000, ratio).verdict(0.025, 0.003) for ratio in (0.9, 1.0, 1.05, 1.3)]
    assert verdicts == ["pass", "pass", "open", "fail"]


def test_pairs_need_fewer_values_than_arms() -> None:
    """The same spread of durations: what 1,800 pairs prove, as many values of two arms do not."""
    rng = np.random.default_rng(4)
    apart = Tail(0.05)
    for candidate, control in zip(correlated(rng, 1800, 1.0)[0], correlated(rng, 1800, 1.0)[1], strict=True):
        apart.add(candidate, candidate=True)
        apart.add(control, candidate=False)
    assert (paired(rng, 1800, 1.0).verdict(0.025, 0.003), apart.verdict(0.025, 0.003)) == ("pass", "open")


def test_too_few_values_are_open_whatever_they_say() -> None:
    """One value short of the minimum, a hundredfold gap in either direction proves nothing."""
    for ratio in (0.01, 100.0):
        tail = paired(np.random.default_rng(1), LEAST_SAMPLES - 1, ratio)
        assert tail.verdict(0.05, 0.05) == "open"
        tail.add_pair(ratio, 1.0)
        assert tail.verdict(0.05, 0.05) == ("pass" if ratio < 1 else "fail")


def test_equal_values_within_the_margin_pass() -> None:
    """Fully tied data: the margin alone makes the difference."""
    tail = Tail(0.05)
    for _ in range(300):
        tail.add_pair(0.2, 0.2)
    assert tail.verdict(0.05, 0.05) == "pass"


def test_no_candidate_values_are_absent() -> None:
    """Before the first value of the candidate nothing was seen."""
    tail = Tail(0.05)
    tail.add(0.1, candidate=False)
    assert (tail.verdict(0.05, 0.05), tail.ratio()) == ("absent", None)


def test_the_ratio_is_that_of_the_observed_percentiles() -> None:
    """To the width of two bins."""
    rng = np.random.default_rng(2)
    candidate, control = correlated(rng, 997, 1.2, noise=0.3)
    tail = Tail(0.05)
    for pair in zip(candidate, control, strict=True):
        tail.add_pair(*pair)
    wanted = np.quantile(candidate, QUANTILE, method="inverted_cdf") / np.quantile(
        control, QUANTILE, method="inverted_cdf"
    )
    assert tail.ratio() == pytest.approx(wanted, rel=2 * BIN)


def test_counts_at_each_cut_bound_the_true_ones() -> None:
    """Whatever threshold within a bin is meant, rounding never favours what is to be proven."""
    rng = np.random.default_rng(7)
    candidate, control = (np.asarray(side) for side in correlated(rng, 300, 1.0, noise=0.1))
    tail = Tail(0.05)
    for pair in zip(candidate.tolist(), control.tolist(), strict=True):
        tail.add_pair(*pair)
    shifted = control * 1.05
    cuts = list(tail._cuts(candidate_lower=True))
    bins = sorted({bin_of(x) + more for x in [*candidate.tolist(), *shifted.tolist()] for more in (0, 1)})
    assert len(cuts) == len(bins)
    for cut, here in zip(cuts, bins, strict=True):
        for at in (here, here + 0.5, here + 0.999):
            limit = math.exp(at * BIN)
            below, other = candidate <= limit, shifted <= limit
            assert cut.a <= below.sum()
            assert cut.b >= other.sum()
            assert cut.pairs_for <= (below & ~other).sum()
            assert cut.pairs_against >= (~below & other).sum()
            assert evidence_above(cut.a, 300, 0.95) <= evidence_above(int(below.sum()), 300, 0.95)
            assert evidence_below(cut.b, 300, 0.95) <= evidence_below(int(other.sum()), 300, 0.95)


def test_the_two_directions_mirror_each_other() -> None:
    """With the arms exchanged, each bin's counts are those of the other direction."""
    rng = np.random.default_rng(8)
    tail, mirror = Tail(0.0), Tail(0.0)
    for candidate, control in zip(*correlated(rng, 200, 1.0, noise=0.01), strict=True):
        tail.add_pair(candidate, control)
        mirror.add_pair(control, candidate)
        tail.add(candidate, candidate=True)
        mirror.add(candidate, candidate=False)
    assert list(tail._cuts(candidate_lower=False)) == list(mirror._cuts(candidate_lower=True))


@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf])
def test_what_is_no_duration_is_refused(value: float) -> None:
    """Negative, not a number, infinite: an error, and nothing is counted."""
    tail = Tail(0.05)
    with pytest.raises(ValueError, match="duration"):
        tail.add(value, candidate=True)
    with pytest.raises(ValueError, match="duration"):
        tail.add_pair(0.1, value)
    assert tail == Tail(0.05)


def test_zero_counts_as_the_shortest_duration() -> None:
    """A clock that did not advance is no error."""
    assert bin_of(0.0) == bin_of(1e-9) < bin_of(1e-5)


def test_a_stored_tail_goes_on_where_it_stopped() -> None:
    """Through JSON and back nothing is lost, and the state stays small: bins, not values."""
    tail = paired(np.random.default_rng(5), 5000, 1.0)
    stored = msgspec.json.encode(tail)
    assert msgspec.json.decode(stored, type=Tail) == tail
    assert len(stored) < 40_000

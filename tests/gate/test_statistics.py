"""The sequential mixtures that all verdicts rest on."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, stats

from specproxy.gate.statistics import (
    EFFECT_VARIANCE,
    Mean,
    evidence_above,
    evidence_below,
    least_evidence,
    log_mixture,
    x_log_y,
)

COUNTS = st.integers(0, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))
RATES = st.floats(0.001, 0.999)


def mean_of(values: list[float]) -> Mean:
    """All values, one by one."""
    mean = Mean()
    for value in values:
        mean.add(value)
    return mean


@pytest.mark.parametrize(("successes", "trials", "rate"), [(3, 10, 0.2), (28, 30, 0.95), (0, 7, 0.5)])
def test_the_mixture_is_the_integral_that_it_stands_for(successes: int, trials: int, rate: float) -> None:
    """The closed form equals the likelihood ratio integrated numerically over Beta(1/2, 1/2)."""

    def likelihood(x: float) -> float:
        # theta = sin(x)^2 turns the prior into a uniform one on (0, pi / 2).
        return math.sin(x) ** (2 * successes) * math.cos(x) ** (2 * (trials - successes)) / (math.pi / 2)

    integral, _ = integrate.quad(likelihood, 0, math.pi / 2)
    null = rate**successes * (1 - rate) ** (trials - successes)
    assert log_mixture(successes, trials, rate) == pytest.approx(math.log(integral / null))


@given(COUNTS, RATES)
def test_evidence_never_falls_as_successes_rise(counts: tuple[int, int], rate: float) -> None:
    """One success in place of a failure is never evidence for a lower rate."""
    successes, trials = counts
    for k in range(successes, trials):
        assert evidence_above(k + 1, trials, rate) >= evidence_above(k, trials, rate)
        if k > successes + 20:
            break


@given(COUNTS, RATES)
def test_above_and_below_mirror_each_other(counts: tuple[int, int], rate: float) -> None:
    """Evidence that successes are rare is evidence that failures are frequent, and never both at once."""
    successes, trials = counts
    above, below = evidence_above(successes, trials, rate), evidence_below(successes, trials, rate)
    assert below == evidence_above(trials - successes, trials, 1 - rate)
    assert min(above, below) <= 1e-9


@given(COUNTS, RATES)
def test_no_result_has_less_than_the_least_evidence(counts: tuple[int, int], rate: float) -> None:
    """The floor that stands for "no evidence" lies below every value of the mixture."""
    successes, trials = counts
    assert log_mixture(successes, trials, rate) >= least_evidence(trials) - 1e-9


def test_nothing_times_an_impossible_logarithm_is_nothing() -> None:
    """The limit x log y at x = 0 is 0, and minus infinity at y = 0 only."""
    assert (x_log_y(0, 0), x_log_y(2, 0), x_log_y(2, 1)) == (0, -math.inf, 0)


@given(st.lists(st.floats(-3, 3), min_size=2, max_size=60))
def test_a_running_mean_is_the_mean(values: list[float]) -> None:
    """Taken in one by one, mean and squared deviations are those of the whole sample."""
    mean = mean_of(values)
    assert mean.mean == pytest.approx(np.mean(values), abs=1e-9)
    assert mean.squares == pytest.approx(np.var(values) * len(values), abs=1e-9)


@given(st.lists(st.floats(-3, 3), min_size=2, max_size=60), st.floats(0.001, 0.2))
def test_one_sided_bounds_are_tighter_than_two_sided_ones(values: list[float], alpha: float) -> None:
    """At one alpha: both intervals hold the mean, the two-sided one is the wider, and mirrored data mirror them."""
    mean, mirrored = mean_of(values), mean_of([-value for value in values])
    low, high = mean.interval(alpha)
    assert low <= mean.lower(alpha) <= mean.mean <= mean.upper(alpha) <= high
    assert mirrored.upper(alpha) == pytest.approx(-mean.lower(alpha))


def test_the_two_sided_bound_is_where_the_bayes_factor_of_the_t_test_reaches_one_over_alpha() -> None:
    """At the interval's end, the marginal likelihood ratio of the t statistic, integrated numerically, is 1 / alpha."""
    mean, alpha = mean_of(np.random.default_rng(3).normal(0.1, 0.3, 60).tolist()), 0.05
    low, _ = mean.interval(alpha)
    n = mean.n
    t = (mean.mean - low) / math.sqrt(mean.squares / (n - 1) / n)

    effects = np.linspace(-2, 2, 4001)
    likelihood = stats.nct.pdf(t, n - 1, effects * math.sqrt(n))
    prior = stats.norm.pdf(effects, scale=math.sqrt(EFFECT_VARIANCE))
    integral = integrate.trapezoid(likelihood * prior, effects)
    assert integral / stats.t.pdf(t, n - 1) == pytest.approx(1 / alpha, rel=1e-4)


def test_one_observation_bounds_nothing() -> None:
    """Without a spread there is no bound."""
    assert mean_of([0.5]).interval(0.05) == (-math.inf, math.inf)


def test_ties_do_not_prove_more_than_a_clock_can() -> None:
    """Equal values leave an interval that is not empty."""
    low, high = mean_of([0.1] * 100).interval(0.05)
    assert low < 0.0999 < 0.1001 < high


def test_what_is_not_a_number_is_refused_and_changes_nothing() -> None:
    """A NaN or an infinity raises and leaves the state as it was."""
    mean = mean_of([1.0, 2.0])
    for value in (math.nan, math.inf):
        with pytest.raises(ValueError, match="finite"):
            mean.add(value)
    assert mean == mean_of([1.0, 2.0])


def test_a_stored_mean_goes_on_where_it_stopped() -> None:
    """Through JSON and back, the rest of the data leads to the same bits."""
    values = np.random.default_rng(1).normal(size=40).tolist()
    half = msgspec.json.decode(msgspec.json.encode(mean_of(values[:20])), type=Mean)
    for value in values[20:]:
        half.add(value)
    assert half == mean_of(values)

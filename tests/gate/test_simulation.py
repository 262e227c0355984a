"""How often the gate errs, with a look after every observation; and how often a test errs that is not made for looks.

Each rate is judged against its promise with a binomial allowance: it may exceed 5 % only as far as chance at this
number of runs takes it once in a thousand times.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from specproxy.gate.evidence import no_evidence
from specproxy.gate.machine import move
from specproxy.gate.mismatches import Mismatches, MismatchTest
from specproxy.gate.rates import RatePair
from specproxy.gate.rules import Rules
from specproxy.gate.statistics import Mean, evidence_above, evidence_below, threshold
from specproxy.gate.tails import Tail
from tests.gate.builders import NOW, Traffic, candidate, observed, rules

PROMISE = 0.05
GAIN = math.log1p(0.03)
SPEED_ONLY = Rules()
"""The built-in rules without tails and rates: what is left is the goal, audits and errors."""


def at_most(errors: int, runs: int, promise: float = PROMISE) -> bool:
    """Whether ``errors`` of ``runs`` are compatible with an error rate of ``promise``."""
    return errors <= stats.binom.ppf(0.999, runs, promise)


def log_ratios(rng: np.random.Generator, mean: float, spread: float, number: int, *, heavy: bool) -> list[float]:
    """Log speed ratios with this mean and standard deviation; heavy: Student's t with 5 degrees of freedom."""
    noise = rng.standard_t(5, number) / math.sqrt(5 / 3) if heavy else rng.normal(size=number)
    return (mean + spread * noise).tolist()


def phase_reached(values: list[float]) -> str:
    """Where a candidate gets from shadow, if the gate looks after every pair; audits are clean."""
    evidence = no_evidence(SPEED_ONLY)
    evidence.mismatches = Mismatches(clean=299, accepted=True)
    state = candidate("shadow")
    for value in values:
        evidence.shadow.speed.add(value)
        moved = move(state, evidence, SPEED_ONLY, NOW)
        if moved.changed:
            return moved.after.phase
    return "shadow"


@pytest.mark.parametrize("heavy", [False, True])
@pytest.mark.parametrize("spread", [0.1, 0.4])
def test_a_candidate_without_the_gain_is_seldom_promoted(spread: float, *, heavy: bool) -> None:
    """At a true gain of exactly ``min_gain``, with a look after each of 600 pairs: to the canary in at most 5 %, and
    rejected in at most 5 %."""
    rng = np.random.default_rng(11)
    reached = [phase_reached(log_ratios(rng, GAIN, spread, 600, heavy=heavy)) for _ in range(150)]
    assert at_most(reached.count("canary"), 150)
    assert at_most(reached.count("rejected"), 150)


def test_a_naive_repeated_t_test_promotes_too_often() -> None:
    """The same data and looks: a one-sided t-test at 5 % after every pair errs in more than 20 %."""
    rng = np.random.default_rng(12)
    values = GAIN + 0.4 * rng.normal(size=(400, 600))
    counts = np.arange(1, 601)
    means = values.cumsum(1) / counts
    deviations = np.sqrt(((values**2).cumsum(1) - counts * means**2) / np.maximum(counts - 1, 1))[:, 49:]
    t = (means[:, 49:] - GAIN) / (deviations / np.sqrt(counts[49:]))
    promoted = (t > stats.t.ppf(0.95, counts[49:] - 1)).any(1)
    assert promoted.mean() > 0.20


@pytest.mark.parametrize(
    ("gain", "spread", "reached"), [(0.10, 0.1, "canary"), (0.10, 0.2, "canary"), (-0.05, 0.1, "rejected")]
)
def test_a_clear_candidate_is_decided_rightly(gain: float, spread: float, reached: str) -> None:
    """A tenth faster is promoted and a twentieth slower rejected, within 400 pairs, in at least 95 % of runs."""
    rng = np.random.default_rng(13)
    runs = [phase_reached(log_ratios(rng, gain, spread, 400, heavy=True)) for _ in range(100)]
    assert runs.count(reached) >= 95


def test_the_confidence_sequence_covers_the_mean_at_all_times() -> None:
    """From the second observation to the 500th the true mean leaves the interval once, in at most 5 % of runs."""
    rng = np.random.default_rng(14)
    left = 0
    for _ in range(300):
        mean = Mean()
        for value in log_ratios(rng, 0.0, 1.0, 500, heavy=False):
            mean.add(value)
            low, high = mean.interval(PROMISE)
            if not low <= 0 <= high:
                left += 1
                break
    assert at_most(left, 300)


def decided(test: MismatchTest, rate: float, rng: np.random.Generator) -> str:
    """The first verdict that is one, at this true rate of mismatches."""
    seen = Mismatches()
    while seen.verdict in ("open", "absent"):
        seen.add(test, hard=rng.random() < rate)
    return seen.verdict


def test_the_mismatch_test_errs_as_seldom_as_it_says() -> None:
    """Numeric: at 0.1 % rejected in at most 5 %, at 1 % accepted in at most 5 %. Bitwise: at 1 % accepted so."""
    rng = np.random.default_rng(15)
    numeric, bitwise = MismatchTest(zero=False), MismatchTest()
    assert at_most([decided(numeric, 0.001, rng) for _ in range(600)].count("fail"), 600)
    assert at_most([decided(numeric, 0.01, rng) for _ in range(600)].count("pass"), 600)
    assert at_most([decided(bitwise, 0.01, rng) for _ in range(600)].count("pass"), 600)


def test_evidence_on_rates_seldom_misleads() -> None:
    """At the rate itself, evidence for more or for less reaches log 20 in at most 5 % of runs, at any of 500 looks."""
    rng = np.random.default_rng(16)
    above = below = 0
    for _ in range(300):
        successes = (rng.random(500) < 0.95).cumsum().tolist()
        above += any(evidence_above(k, n, 0.95) >= threshold(PROMISE) for n, k in enumerate(successes, 1))
        below += any(evidence_below(k, n, 0.95) >= threshold(PROMISE) for n, k in enumerate(successes, 1))
    assert at_most(above, 300)
    assert at_most(below, 300)


@pytest.mark.parametrize("control", [1.0, 0.9])
def test_rates_at_the_margin_are_seldom_decided(control: float) -> None:
    """At a true difference of exactly the margin: passed in at most 5 %, failed in at most 5 %, at any of 100 looks."""
    rng = np.random.default_rng(17)
    verdicts = []
    for _ in range(150):
        pair, verdict = RatePair(), "open"
        for good, other in (rng.random((1000, 2)) < (control - 0.02, control)).tolist():
            pair.add(candidate=True, good=good)
            pair.add(candidate=False, good=other)
            if verdict == "open" and pair.candidate % 10 == 0:
                verdict = pair.verdict(0.02, PROMISE, PROMISE)
        verdicts.append(verdict)
    assert at_most(verdicts.count("pass"), 150)
    assert at_most(verdicts.count("fail"), 150)


@pytest.mark.parametrize("noise", [0.02, 0.3])
def test_percentiles_at_the_margin_are_seldom_decided(noise: float) -> None:
    """At a true ratio of exactly 1.05, margin 5 %: passed in at most 5 %, failed in at most 5 %, at any of 15 looks."""
    rng = np.random.default_rng(18)
    verdicts = []
    for _ in range(60):
        tail, verdict = Tail(0.05), "open"
        base, own, other = rng.normal(size=(3, 900)) * [[0.2], [noise], [noise]]
        for value, left, right in np.exp([base, own, other]).T.tolist():
            tail.add_pair(1.05 * value * left, value * right)
            if verdict == "open" and tail.num_candidate % 60 == 0:
                verdict = tail.verdict(PROMISE, PROMISE)
        verdicts.append(verdict)
    assert at_most(verdicts.count("pass"), 60)
    assert at_most(verdicts.count("fail"), 60)


def final_phase(traffic: Traffic, limit: int = 3000) -> str:
    """From shadow to the end, with a look after every 60 pairs; all metrics, default rules."""
    given = rules()
    evidence, state = observed(given), candidate("shadow")
    for _ in range(0, limit, 60):
        traffic.audits(evidence, given, 60)
        traffic.pairs(evidence.shadow if state.phase == "shadow" else evidence.live, 60)
        state = move(state, evidence, given, NOW).after
        if state.phase not in ("shadow", "canary"):
            break
    return state.phase


def test_the_whole_gate_promotes_a_good_candidate() -> None:
    """Faster, no later, no dearer, as valid and as stable: active in every one of six runs."""
    rng = np.random.default_rng(19)
    assert [final_phase(Traffic(rng)) for _ in range(6)] == ["active"] * 6


@pytest.mark.parametrize(
    "fault",
    [{"gain": -0.05}, {"latency": 1.25}, {"cost": 1.15}, {"valid": 0.9}, {"stable": 0.9}],
    ids=lambda fault: next(iter(fault)),
)
def test_the_whole_gate_stops_a_bad_candidate(fault: dict[str, float]) -> None:
    """Fast in all but one metric: rejected or rolled back in every one of three runs."""
    rng = np.random.default_rng(20)
    assert {final_phase(Traffic(rng, **fault)) for _ in range(3)} <= {"rejected", "rolled_back"}

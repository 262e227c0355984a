"""The 95th percentile of two arms: is the candidate's no more than the control's times (1 + margin)?

Sequential estimation of quantiles after Howard and Ramdas (arXiv 1906.09712), the order of two distributions after
Lindon, Sanden and Shirikian (arXiv 2205.14762). With F the candidate's distribution and G that of the control's values
times (1 + margin), the candidate's percentile is the larger one only if some t has F(t) < p <= G(t). Each t is refuted
by log evidence of its own, and the hypothesis once all are:

- arms: F(t) above p, plus G(t) below p, each from the arm's own counts;
- pairs (both arms on the same request): those with F's value <= t < G's against those the other way round, of which
  under the hypothesis at least half are the latter. Much stronger where both values of a pair move together.

Half of the stake is on each. Values are counted in bins of a quarter of a percent, rounded against what is to be
proven, so a state is small, updates take constant time, and verdicts are exact at every sample size.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

from msgspec import Struct, field

from specproxy.gate.statistics import Verdict, evidence_above, evidence_below, threshold

QUANTILE = 0.95

BIN = 0.0025
"""Width of a bin in natural logarithms."""

LEAST_VALUE = 1e-6
"""Seconds; anything shorter counts as this."""

LEAST_SAMPLES = 200
"""Values of each arm before a verdict: ten beyond the percentile."""

Counts = dict[int, int]


def bin_of(value: float) -> int:
    """The bin of a duration in seconds. Raises ValueError where it is negative or not finite."""
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"a duration of {value} s; a finite number of at least 0 was expected")
    return math.floor(math.log(max(value, LEAST_VALUE)) / BIN)


def _count(counts: Counts, key: int) -> None:
    counts[key] = counts.get(key, 0) + 1


class _Cut(NamedTuple):
    """What is known at a threshold within one bin, A being the side that is to be proven lower: of each side's values
    those surely below (``a``) or possibly at most (``b``) the threshold; pairs surely for, and possibly against."""

    a: int
    b: int
    pairs_for: int
    pairs_against: int


class Tail(Struct):
    """Durations of both arms. The control's are multiplied by ``1 + margin`` as they come in. Pairs are kept by their
    lower and upper bin, apart by which arm was lower (``better``: the candidate)."""

    margin: float
    candidate: Counts = field(default_factory=dict)
    control: Counts = field(default_factory=dict)
    better_low: Counts = field(default_factory=dict)
    better_high: Counts = field(default_factory=dict)
    worse_low: Counts = field(default_factory=dict)
    worse_high: Counts = field(default_factory=dict)
    tied: Counts = field(default_factory=dict)
    num_candidate: int = 0
    num_control: int = 0

    def add(self, seconds: float, *, candidate: bool) -> None:
        """Take in a value that has no partner."""
        if candidate:
            _count(self.candidate, bin_of(seconds))
            self.num_candidate += 1
        else:
            _count(self.control, bin_of(seconds * (1 + self.margin)))
            self.num_control += 1

    def add_pair(self, candidate_s: float, control_s: float) -> None:
        """Take in the values of both arms for one request."""
        candidate, control = bin_of(candidate_s), bin_of(control_s * (1 + self.margin))
        if candidate < control:
            _count(self.better_low, candidate)
            _count(self.better_high, control)
        elif candidate > control:
            _count(self.worse_low, control)
            _count(self.worse_high, candidate)
        else:
            _count(self.tied, candidate)
        self.num_candidate += 1
        self.num_control += 1

    def ratio(self) -> float | None:
        """The candidate's 95th percentile over the control's, as observed; ``None`` before there is one of each."""
        if not self.num_candidate or not self.num_control:
            return None
        mine = _percentile([self.candidate, self.better_low, self.worse_high, self.tied], self.num_candidate)
        other = _percentile([self.control, self.better_high, self.worse_low, self.tied], self.num_control)
        return math.exp((mine - other) * BIN) * (1 + self.margin)

    def verdict(self, pass_alpha: float, fail_alpha: float) -> Verdict:
        """Whether the candidate's percentile is proven within the margin, or beyond it."""
        if not self.num_candidate:
            return "absent"
        if min(self.num_candidate, self.num_control) < LEAST_SAMPLES:
            return "open"
        if self._proven(threshold(pass_alpha), candidate_lower=True):
            return "pass"
        return "fail" if self._proven(threshold(fail_alpha), candidate_lower=False) else "open"

    def _proven(self, needed: float, *, candidate_lower: bool) -> bool:
        """Whether every threshold is refuted at which the side to be proven lower would be the higher one."""
        num_a, num_b = self.num_candidate, self.num_control
        if not candidate_lower:
            num_a, num_b = num_b, num_a
        for cut in self._cuts(candidate_lower):
            arms = evidence_above(cut.a, num_a, QUANTILE) + evidence_below(cut.b, num_b, QUANTILE)
            pairs = evidence_above(cut.pairs_for, cut.pairs_for + cut.pairs_against, 0.5)
            if max(arms, pairs) + math.log1p(math.exp(-abs(arms - pairs))) - math.log(2) < needed:
                return False
        return True

    def _cuts(self, candidate_lower: bool) -> Iterator[_Cut]:
        """What is known in each bin where that changes, in order."""
        lone_a, lone_b = self.candidate, self.control
        for_low, for_high = self.better_low, self.better_high
        against_low, against_high = self.worse_low, self.worse_high
        if not candidate_lower:
            lone_a, lone_b = lone_b, lone_a
            for_low, for_high, against_low, against_high = against_low, against_high, for_low, for_high
        tables = (lone_a, lone_b, for_low, for_high, against_low, against_high, self.tied)
        occupied = set().union(*tables)
        below = [0] * len(tables)
        for here in sorted(occupied | {key + 1 for key in occupied}):
            up_to = [total + table.get(here, 0) for total, table in zip(below, tables, strict=True)]
            yield _Cut(
                a=below[0] + below[2] + below[5] + below[6],
                b=up_to[1] + up_to[3] + up_to[4] + up_to[6],
                pairs_for=below[2] - up_to[3],
                pairs_against=up_to[4] - below[5] + up_to[6] - below[6],
            )
            below = up_to


def _percentile(tables: list[Counts], total: int) -> int:
    """The bin of the 95th percentile of all that the tables hold."""
    merged: Counts = {}
    for table in tables:
        for key, count in table.items():
            merged[key] = merged.get(key, 0) + count
    seen = 0
    for key in sorted(merged):
        seen += merged[key]
        if seen >= QUANTILE * total:
            return key
    raise ValueError("no values")

"""Paired ratios."""

from __future__ import annotations

import math

import numpy as np
import pytest

from specproxy.bench.stats import median, paired_ratio, pooled_share


def test_a_constant_ratio_has_no_spread() -> None:
    """Pairs that all say 2x give 2x with an interval of no width."""
    ratio = paired_ratio([math.log(2)] * 5)
    assert (ratio.mean, ratio.low, ratio.high, ratio.p10, ratio.p90) == pytest.approx((2, 2, 2, 2, 2))
    assert ratio.units == 5


def test_the_mean_is_geometric() -> None:
    """Twice as fast and half as fast cancel out."""
    assert paired_ratio([math.log(2), math.log(0.5)]).mean == pytest.approx(1)


def test_one_pair_has_no_interval() -> None:
    """A single measurement claims no precision."""
    ratio = paired_ratio([0.1])
    assert (ratio.low, ratio.high) == (0, math.inf)


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    """Over 200 simulated runs of 30 pairs the 95 % interval holds the true ratio in 180 to 199 of them."""
    rng = np.random.default_rng(1)
    covered = 0
    for seed in range(200):
        ratio = paired_ratio(list(rng.normal(math.log(1.5), 0.3, 30)), seed=seed)
        covered += ratio.low <= 1.5 <= ratio.high
    assert 180 <= covered <= 199


def test_the_result_is_reproducible() -> None:
    """The same pairs give the same interval, digit by digit."""
    logs = [0.1, 0.3, -0.2, 0.4]
    assert paired_ratio(logs) == paired_ratio(logs)


def test_no_pairs_is_an_error() -> None:
    """A ratio of nothing is not reported as 1."""
    with pytest.raises(ValueError, match="no pairs"):
        paired_ratio([])


def test_median_of_nothing_is_nothing() -> None:
    """No measurement has no median."""
    assert median([]) is None
    assert median([3.0, 1.0, 2.0]) == 2.0


def test_a_share_is_pooled_over_its_groups() -> None:
    """Every observation counts the same; the interval comes from the groups, and holds the mean."""
    share = pooled_share([[1.0, 1.0, 1.0], [0.0], []])
    assert (share.mean, share.groups) == (0.75, 2)
    assert (share.low, share.high) == (0.0, 1.0)
    many = pooled_share([[1.0, 0.0]] * 50)
    assert (many.mean, many.low, many.high) == (0.5, 0.5, 0.5)


def test_one_text_has_no_interval() -> None:
    """Of one group nothing is claimed, and of none there is no mean."""
    assert pooled_share([[1.0, 0.0]]) == pooled_share([[0.0, 1.0]])
    assert (pooled_share([[1.0, 0.0]]).low, pooled_share([[1.0, 0.0]]).high) == (0.0, 1.0)
    assert math.isnan(pooled_share([]).mean)

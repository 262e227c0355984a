"""Paired statistics: how much faster one arm is than another on the same prompts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from msgspec import Struct

RESAMPLES = 10_000
"""Bootstrap resamples: the interval's ends then move by less than the third digit between seeds."""


class Ratio(Struct, frozen=True):
    """A ratio of speeds: geometric mean over the units, its 95 % bootstrap interval, and the 10th and 90th percentile
    of single units (the spread). ``units``: how many pairs went in; with fewer than two there is no interval."""

    mean: float
    low: float
    high: float
    p10: float
    p90: float
    units: int


def paired_ratio(logs: Sequence[float], *, seed: int = 0) -> Ratio:
    """From the paired log ratios, one per independent unit (repeats averaged before). Needs at least one.

    The units are resampled, not the single measurements: repeats of one prompt are not independent.
    """
    x = np.asarray(logs, np.float64)
    if len(x) == 0:
        raise ValueError("no pairs")
    rng = np.random.default_rng(seed)
    means = x[rng.integers(0, len(x), (RESAMPLES, len(x)))].mean(axis=1)
    low, high = np.percentile(means, (2.5, 97.5))
    p10, p90 = np.percentile(x, (10, 90))
    if len(x) == 1:
        low, high = -np.inf, np.inf
    mean, low, high, p10, p90 = (float(np.exp(value)) for value in (x.mean(), low, high, p10, p90))
    return Ratio(mean, low, high, p10, p90, len(x))


def median(values: Sequence[float]) -> float | None:
    """The median, ``None`` of nothing."""
    return float(np.median(values)) if values else None


class Share(Struct, frozen=True):
    """A mean over observations that come in groups, with its 95 % bootstrap interval over the groups; ``groups``: how
    many had any. With fewer than two the interval is the whole range from 0 to 1."""

    mean: float
    low: float
    high: float
    groups: int


def pooled_share(groups: Sequence[Sequence[float]], *, seed: int = 0) -> Share:
    """The mean of values from 0 to 1, all of equal weight. The groups are resampled: values of one text are not
    independent. NaN where there is none."""
    sums = np.asarray([sum(group) for group in groups if group], np.float64)
    counts = np.asarray([len(group) for group in groups if group], np.float64)
    if len(sums) < 2:
        return Share(float(sums.sum() / counts.sum()) if len(sums) else float("nan"), 0.0, 1.0, len(sums))
    drawn = np.random.default_rng(seed).integers(0, len(sums), (RESAMPLES, len(sums)))
    low, high = np.percentile(sums[drawn].sum(1) / counts[drawn].sum(1), (2.5, 97.5))
    return Share(float(sums.sum() / counts.sum()), float(low), float(high), len(sums))

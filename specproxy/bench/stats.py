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

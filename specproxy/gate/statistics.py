"""Sequential statistics that may be looked at after every observation.

All of them are mixtures of likelihood ratios: non-negative supermartingales under the null hypothesis, which exceed
1/alpha at any time at all with a probability of alpha at most (Ville's inequality). So a verdict may be asked for as
often as one likes, and stopping when it suits does no harm. Evidence is a natural logarithm here; it suffices at
``log(1 / alpha)``.

- Rates: the mixture over Beta(1/2, 1/2) of Robbins, "Statistical methods related to the law of the iterated logarithm"
  (1970); exact at every sample size.
- Means: a normal mixture over effect sizes, the mSPRT of Johari et al. (arXiv 1512.04922) with the variance unknown as
  in Lai, "On confidence sequences" (1976), and Wang and Ramdas (arXiv 2310.03722). Exact for normal data from the
  second observation on; for others in the limit (Waudby-Smith et al., arXiv 2103.06476), so a minimum of samples still
  protects the start.
"""

from __future__ import annotations

import math
from typing import Literal

from msgspec import Struct

Verdict = Literal["pass", "fail", "open", "absent"]
"""Proven good, proven bad, not known yet, nothing seen at all."""

EFFECT_VARIANCE = 0.04
"""Variance of the effect sizes (difference over standard deviation) that the mixture of means expects: about 0.2."""

LEAST_SD = 1e-3
"""No spread of log ratios below this is believed: clocks are not better, and ties would prove anything."""


def threshold(alpha: float) -> float:
    """The log evidence that suffices at an error probability of ``alpha``."""
    return -math.log(alpha)


def x_log_y(x: float, y: float) -> float:
    """``x * log(y)``; 0 where ``x`` is 0, and minus infinity where only ``y`` is."""
    if x == 0:
        return 0.0
    return x * math.log(y) if y > 0 else -math.inf


def log_mixture(successes: int, trials: int, rate: float) -> float:
    """Log of the Beta(1/2, 1/2) mixture likelihood over the likelihood of ``rate``; convex in ``rate``."""
    failures = trials - successes
    mixture = math.lgamma(successes + 0.5) + math.lgamma(failures + 0.5) - math.lgamma(trials + 1) - math.log(math.pi)
    return mixture - x_log_y(successes, rate) - x_log_y(failures, 1 - rate)


def least_evidence(trials: int) -> float:
    """What ``log_mixture`` can fall to at most, over all outcomes and rates; no result of ``trials`` trials has
    less."""
    return math.lgamma(trials + 0.5) - math.lgamma(trials + 1) - 0.5 * math.log(math.pi)


def evidence_above(successes: int, trials: int, rate: float) -> float:
    """Log evidence that the true rate is above ``rate``; never falls as ``successes`` rise."""
    if successes <= trials * rate:
        return least_evidence(trials)
    return log_mixture(successes, trials, rate)


def evidence_below(successes: int, trials: int, rate: float) -> float:
    """Log evidence that the true rate is below ``rate``; never rises as ``successes`` do."""
    return evidence_above(trials - successes, trials, 1 - rate)


class Mean(Struct):
    """A running mean with an always-valid confidence sequence; ``squares``: summed squared deviations from it."""

    n: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def add(self, value: float) -> None:
        """Take in one observation. Raises ValueError where it is not finite."""
        if not math.isfinite(value):
            raise ValueError(f"an observation of {value}; a finite number was expected")
        self.n += 1
        step = value - self.mean
        self.mean += step / self.n
        self.squares += step * (value - self.mean)

    def lower(self, alpha: float) -> float:
        """Above this lies the true mean, at all times at once, but with a probability of ``alpha``."""
        return self.mean - self._one_sided(alpha)

    def upper(self, alpha: float) -> float:
        """Below this lies the true mean, at all times at once, but with a probability of ``alpha``."""
        return self.mean + self._one_sided(alpha)

    def interval(self, alpha: float) -> tuple[float, float]:
        """The true mean lies between these, at all times at once, but with a probability of ``alpha``."""
        half = self._half_width(math.sqrt(self._spread()) / alpha)
        return self.mean - half, self.mean + half

    def _one_sided(self, alpha: float) -> float:
        # With M+ the mixture over positive effects and M that over all, M = (M+(t) + M+(-t)) / 2, and M+(-t) is at most
        # M+(0) = spread ** -0.5; so M+ reaches 1 / alpha once M reaches half of (1 / alpha + spread ** -0.5).
        return self._half_width(0.5 + 0.5 * math.sqrt(self._spread()) / alpha)

    def _spread(self) -> float:
        return 1 + self.n * EFFECT_VARIANCE

    def _half_width(self, ratio: float) -> float:
        """Where the likelihood ratio of the t statistic, without its factor ``spread ** -0.5``, reaches ``ratio``."""
        if self.n < 2:
            return math.inf
        growth, spread = ratio ** (2 / self.n), self._spread()
        if growth >= spread:
            return math.inf
        squares = max(self.squares, self.n * LEAST_SD**2)
        return math.sqrt((growth - 1) / (1 - growth / spread) * squares / self.n)

"""Rates of two arms: is the candidate's no lower than the control's, but for a margin?

The pair of true rates (a, b) has the evidence of both arms against it, added up; the hypothesis a <= b - margin is
refuted once every pair in it is. That evidence is convex, so its least value lies on the line a = b - margin.
"""

from __future__ import annotations

from msgspec import Struct

from specproxy.gate.statistics import Verdict, least_evidence, log_mixture, threshold

HALVINGS = 40
"""Bisections of an interval of length 1 at most: to 1e-12, and never onto its ends, where the slope has no value."""


class RatePair(Struct):
    """Trials and successes of both arms."""

    candidate: int = 0
    candidate_good: int = 0
    control: int = 0
    control_good: int = 0

    def add(self, *, candidate: bool, good: bool) -> None:
        """Take in one trial of the candidate or of the control."""
        if candidate:
            self.candidate += 1
            self.candidate_good += good
        else:
            self.control += 1
            self.control_good += good

    @property
    def difference(self) -> float:
        """The candidate's rate less the control's; an arm without trials counts as perfect."""
        candidate = self.candidate_good / self.candidate if self.candidate else 1.0
        control = self.control_good / self.control if self.control else 1.0
        return candidate - control

    def verdict(self, margin: float, pass_alpha: float, fail_alpha: float) -> Verdict:
        """Whether the candidate's rate is proven above or below the control's less ``margin``."""
        if not self.candidate:
            return "absent"
        evidence, above = self.evidence(margin)
        if evidence >= threshold(pass_alpha if above else fail_alpha):
            return "pass" if above else "fail"
        return "open"

    def evidence(self, margin: float) -> tuple[float, bool]:
        """Log evidence for the side of ``control - margin`` on which the candidate was seen, and whether that is
        above."""
        above = self.difference > -margin
        if self.difference == -margin or margin >= 1:
            return least_evidence(self.candidate) + least_evidence(self.control), above
        low, high = margin, 1.0
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            if self._slope(middle, margin) < 0:
                low = middle
            else:
                high = middle
        return self._at(high, margin), above

    def _at(self, rate: float, margin: float) -> float:
        candidate = log_mixture(self.candidate_good, self.candidate, rate - margin)
        return candidate + log_mixture(self.control_good, self.control, rate)

    def _slope(self, rate: float, margin: float) -> float:
        """Derivative of ``_at``, for rates strictly between ``margin`` and 1."""
        lower = rate - margin
        candidate = (self.candidate - self.candidate_good) / (1 - lower) - self.candidate_good / lower
        return candidate + (self.control - self.control_good) / (1 - rate) - self.control_good / rate

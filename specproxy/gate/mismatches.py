"""Hard mismatches among audited answers: one rejects where answers are bitwise, a sequential test decides where not.

Wald's test of ``p0`` against ``p1``: each answer moves the log likelihood ratio, a mismatch up by log(p1 / p0), a clean
one down by log((1 - p0) / (1 - p1)), between log(beta / (1 - alpha)), where the rate is accepted, and log((1 - beta) /
alpha), where it is rejected (A. Wald, "Sequential Analysis", 1947). Once accepted it goes on as a CUSUM from the lower
boundary, so that a fault that begins later is still noticed.
"""

from __future__ import annotations

import math

from msgspec import Struct

from specproxy.gate.statistics import Verdict


class MismatchTest(Struct, frozen=True):
    """What is tested. ``zero``: bitwise answers, where one mismatch rejects; rates and error probabilities as in a
    policy's ``gate.mismatch``."""

    zero: bool = True
    p0: float = 0.001
    p1: float = 0.01
    alpha: float = 0.05
    beta: float = 0.05

    @property
    def reject_at(self) -> float:
        """Log likelihood ratio at which the rate is rejected."""
        return math.log((1 - self.beta) / self.alpha)

    @property
    def accept_at(self) -> float:
        """Log likelihood ratio at which the rate is accepted."""
        return math.log(self.beta / (1 - self.alpha))

    def step(self, hard: bool) -> float:
        """What one answer adds to the log likelihood ratio."""
        return math.log(self.p1 / self.p0) if hard else math.log((1 - self.p1) / (1 - self.p0))

    @property
    def clean_needed(self) -> int:
        """Clean answers that pass where there is no mismatch. Bitwise: as many as exclude ``p1`` at ``1 - beta``."""
        if self.zero:
            return math.ceil(math.log(self.beta) / math.log1p(-self.p1))
        return math.ceil(self.accept_at / self.step(False))

    @property
    def clean_per_mismatch(self) -> int:
        """Clean answers that one more mismatch costs, in numeric mode."""
        return math.ceil(self.step(True) / -self.step(False))


class Mismatches(Struct):
    """Audited answers of one candidate, each counted once. ``explained``: near-ties among the clean ones."""

    clean: int = 0
    hard: int = 0
    explained: int = 0
    log_ratio: float = 0.0
    accepted: bool = False
    rejected: bool = False

    def add(self, test: MismatchTest, *, hard: bool, explained: bool = False) -> None:
        """Take in one audited answer."""
        self.hard += hard
        self.clean += not hard
        self.explained += explained and not hard
        if test.zero:
            self.rejected = self.hard > 0
            self.accepted = self.hard == 0 and self.clean >= test.clean_needed
            return
        self.log_ratio = max(self.log_ratio + test.step(hard), test.accept_at)
        self.accepted |= self.log_ratio <= test.accept_at
        self.rejected |= self.log_ratio >= test.reject_at

    @property
    def verdict(self) -> Verdict:
        """Rejection is final; what was accepted may still be rejected later."""
        if self.rejected:
            return "fail"
        if self.accepted:
            return "pass"
        return "open" if self.clean + self.hard else "absent"

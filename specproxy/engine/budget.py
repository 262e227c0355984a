"""A share of the wall time, for work that may take some of it from others."""

from __future__ import annotations

import math
from collections.abc import Callable

MOST_CREDIT_S = 0.01
"""Time that may be saved up: a pause is not paid back by more than one piece of work at once."""

LEAST_WAIT_S = 0.001


class Budget:
    """A share of the wall time, in seconds of ``clock``."""

    def __init__(self, share: float, clock: Callable[[], float]) -> None:
        self.share = share
        self._clock = clock
        self._credit = 0.0
        self._last = clock()

    @property
    def due_in(self) -> float:
        """Seconds until something may run; 0: now. What then takes longer is paid for afterwards."""
        now = self._clock()
        self._credit = min(MOST_CREDIT_S, self._credit + self.share * (now - self._last))
        self._last = now
        if self.share >= 1.0 or self._credit > 0.0:
            return 0.0
        return LEAST_WAIT_S - self._credit / self.share if self.share > 0.0 else math.inf

    def spend(self, seconds: float) -> None:
        """So much was used."""
        self._credit -= seconds

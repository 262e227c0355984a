"""An engine that hangs: it says something twice a second, whatever it does, so that silence means that a step never
ends (a kernel that waits for ever, a driver that is gone, a process that was stopped).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

LOOKS = 8
"""Looks within the time that an engine may be silent."""


class Watchdog:
    """``limit_s``: seconds that an engine may be silent. ``clock``: seconds that only grow."""

    def __init__(self, limit_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.limit_s = limit_s
        self._clock = clock
        self._heard = clock()

    def heard(self) -> None:
        """The engine said something."""
        self._heard = self._clock()

    def hung(self, *, expected: bool) -> bool:
        """Whether it was silent for too long. Not ``expected`` to speak: it starts, or loads a drafter between two
        steps; then its time begins anew."""
        if not expected:
            self.heard()
        return self._clock() - self._heard > self.limit_s

    async def wait(self, expected: Callable[[], bool]) -> None:
        """Returns when it hangs. A look that comes late tells of this process, not of the engine: it counts for
        nothing."""
        pause_s = self.limit_s / LOOKS
        while not self.hung(expected=expected()):
            before = self._clock()
            await asyncio.sleep(pause_s)
            if self._clock() - before > 2 * pause_s:
                self.heard()

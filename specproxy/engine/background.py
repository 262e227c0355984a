"""Which steps background work takes: all of them where no user is there, and a share of the time where one is."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Rows

from specproxy.engine.budget import Budget
from specproxy.engine.sequence import Sequence


class Background:
    """Decides between users' steps and background work's; the two never share one.

    While users are there, no background step follows right after another, so that a user waits for one at most; and all
    of them together take no more of the wall time (``clock``, in seconds) than the smallest ``busy_share`` of those
    that take part. What a step took is what its sequences' ``device_s`` grew by.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._budget = Budget(0.0, clock)
        self._turn = False
        self._users_first = False
        self._charged: list[Sequence] = []
        self._paid_s = 0.0

    def choose(self, running: Rows[Sequence]) -> None:
        """Decide whose step may come next; it holds until this is called again."""
        mine = _with_share(running)
        self._turn = False
        if mine and not self._users_first and any(s.user for s in running):
            self._budget.share = min(s.submission.busy_share for s in mine)
            self._turn = self._budget.due_in <= 0.0

    def group(self, running: Rows[Sequence]) -> Rows[Sequence]:
        """The sequences of which some take that step. Of background work beside users, prompts come first."""
        users = [s for s in running if s.user]
        mine = _with_share(running) if self._turn and users else []
        return [s for s in mine if s.prefilling] or mine or users or running

    def began(self, sequences: Rows[Sequence], running: Rows[Sequence]) -> None:
        """A step of these begins; the one before it is over, and its seconds are booked."""
        self._budget.spend(_device_s(self._charged) - self._paid_s)
        user = sequences[0].user
        self._users_first = not user
        self._charged = [] if user or not any(s.user for s in running) else list(sequences)
        self._paid_s = _device_s(self._charged)


def _with_share(running: Rows[Sequence]) -> list[Sequence]:
    """Background work that may take steps while users are there."""
    return [s for s in running if not s.user and s.submission.busy_share > 0.0]


def _device_s(sequences: Rows[Sequence]) -> float:
    return sum(s.stats.device_s for s in sequences)

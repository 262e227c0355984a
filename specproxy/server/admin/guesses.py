"""Wrong admin keys, counted by where they come from, so that nobody can try many."""

from __future__ import annotations

import ipaddress
import time
from collections import OrderedDict, deque
from collections.abc import Callable

MOST_WRONG = 10
SPAN_S = 60.0
"""So many wrong keys in so many seconds are heard from one place; then none, right or wrong, until the first of them is
that long ago. A key that still worked would make guessing as fast as before."""

MAX_PLACES = 1024
"""Places that are remembered; the one that was silent longest goes first."""


class Guesses:
    """Counts wrong keys. ``clock``: seconds that only grow."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._times: OrderedDict[str, deque[float]] = OrderedDict()

    def __len__(self) -> int:
        """Places that are remembered."""
        return len(self._times)

    def wait_s(self, address: str | None) -> float:
        """Seconds until a key from ``address`` is heard again; 0 where it is heard now."""
        times = self._times.get(_place(address))
        if times is None or len(times) < MOST_WRONG:
            return 0.0
        return max(0.0, times[0] + SPAN_S - self._clock())

    def wrong(self, address: str | None) -> None:
        """A key from ``address`` was wrong."""
        place = _place(address)
        times = self._times.pop(place, None) or deque(maxlen=MOST_WRONG)
        times.append(self._clock())
        self._times[place] = times
        if len(self._times) > MAX_PLACES:
            self._times.popitem(last=False)


def _place(address: str | None) -> str:
    """The address; of IPv6 the network of 64 bits, in which one host may have any address. Over a Unix socket: none."""
    try:
        found = ipaddress.ip_address(address or "")
    except ValueError:
        return address or ""
    if isinstance(found, ipaddress.IPv6Address):
        if found.ipv4_mapped is not None:
            return str(found.ipv4_mapped)
        return str(ipaddress.ip_network((int(found), 64), strict=False))
    return str(found)

"""What each API key may use: requests a second, tokens a minute, requests at once.

Requests and tokens are levels that fill up steadily, to what one second and one minute bring. A request starts where
there is a whole request and any token left. How many tokens it takes is known when it ends, and taken then, exactly;
a level below nothing has to fill up again before the next one starts. There is a fixed piece of state for each key that
has limits, and nothing for others.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from types import TracebackType

from specproxy.config.keys import KeyLimits
from specproxy.errors import KeyLimited

_FULL_S = 1.0
"""When to come back if as many requests run as may: nobody knows when one of them ends."""


class Level:
    """An amount that grows by ``rate`` a second up to ``most``, and can be below 0 after it was used."""

    def __init__(self, most: float, rate: float, clock: Callable[[], float]) -> None:
        self.most = most
        self._rate = rate
        self._clock = clock
        self._there = most
        self._at = clock()

    @property
    def there(self) -> float:
        """So much there is now."""
        now = self._clock()
        self._there = min(self.most, self._there + self._rate * (now - self._at))
        self._at = now
        return self._there

    def use(self, amount: float) -> None:
        """Take some of it."""
        self._there = self.there - amount

    def lasts_s(self, amount: float) -> float:
        """Seconds until there is so much."""
        return max(0.0, amount - self.there) / self._rate


class _Key:
    """State of one key."""

    def __init__(self, limits: KeyLimits, clock: Callable[[], float]) -> None:
        per_s, per_min = limits.requests_per_s, limits.tokens_per_min
        self.requests = None if per_s is None else Level(max(1.0, per_s), per_s, clock)
        self.tokens = None if per_min is None else Level(per_min, per_min / 60, clock)
        self.concurrent = math.inf if limits.concurrent is None else limits.concurrent
        self.running = 0


class Quotas:
    """Of all keys with limits. ``clock``: seconds that only grow."""

    def __init__(self, limits: Mapping[str, KeyLimits], clock: Callable[[], float] = time.monotonic) -> None:
        self._keys = {key_id: _Key(each, clock) for key_id, each in limits.items()}

    def bind(self, key_id: str) -> bool:
        """Whether this key has limits."""
        return key_id in self._keys

    def look(self, key_id: str) -> Pass:
        """For one request of a key that has limits."""
        return Pass(self._keys[key_id])


class Pass:
    """One request of one key, from the start to the end of the ``with`` block. That raises KeyLimited where the key may
    start none now. ``tokens``: what it took, to be set before the end."""

    def __init__(self, key: _Key) -> None:
        self._key = key
        self.tokens = 0

    def headers(self) -> dict[str, str]:
        """OpenAI's headers: what the limits are, what is left now, and after what time all of it is back."""
        found: dict[str, str] = {}
        for name, level in (("requests", self._key.requests), ("tokens", self._key.tokens)):
            if level is not None:
                found[f"x-ratelimit-limit-{name}"] = str(math.floor(level.most))
                found[f"x-ratelimit-remaining-{name}"] = str(max(0, math.floor(level.there)))
                found[f"x-ratelimit-reset-{name}"] = duration(level.lasts_s(level.most))
        return found

    def __enter__(self) -> Pass:
        key = self._key
        if key.running >= key.concurrent:
            message = f"this API key has {key.running} requests running, and may have {key.concurrent} at once"
            raise KeyLimited(f"{message}; try again when one of them has ended", "requests", _FULL_S)
        if key.requests is not None and key.requests.there < 1.0:
            wait = key.requests.lasts_s(1.0)
            message = "this API key has sent as many requests as it may"
            raise KeyLimited(f"{message}; the next one may come in {duration(wait)}", "requests", wait)
        if key.tokens is not None and key.tokens.there < 1.0:
            wait = key.tokens.lasts_s(1.0)
            message = f"this API key has used its {key.tokens.most:g} tokens a minute"
            raise KeyLimited(f"{message}; the next request may come in {duration(wait)}", "tokens", wait)
        if key.requests is not None:
            key.requests.use(1.0)
        key.running += 1
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._key.running -= 1
        if self._key.tokens is not None:
            self._key.tokens.use(self.tokens)


def duration(seconds: float) -> str:
    """As OpenAI writes times: 20ms, 1.5s, 6m0s; rounded up."""
    milliseconds = math.ceil(seconds * 1000 - 1e-6)
    if milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes}m{math.ceil(rest / 1000)}s" if minutes else f"{rest / 1000:g}s"

"""What a condition asks of one value: text, numbers, flags.

Each predicate is called with the value seen (``None``: the request does not give the field), says in words what it
wants, and can tell whether it is at least as narrow as another, which is how unreachable routes are found.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import regex
import structlog

PRESENT = "present"
ABSENT = "absent"

REGEX_TIMEOUT_S = 0.01
"""Longest that one search may take: it runs on the server's event loop. Usual patterns need microseconds."""

_SIGNS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}

Search = Callable[[str], bool]


@dataclass(frozen=True, kw_only=True)
class Predicate(ABC):
    """A test of one value. ``wanted``: what it asks for, in words."""

    wanted: str

    @abstractmethod
    def __call__(self, seen: object) -> bool:
        """Whether ``seen`` satisfies it."""

    @abstractmethod
    def within(self, other: Predicate) -> bool:
        """Whether everything that satisfies this surely satisfies ``other``, a predicate of the same key."""

    @property
    def impossible(self) -> bool:
        """Whether nothing can satisfy it."""
        return False


class RegexGuard:
    """Compiles patterns, bounds the time of every search, and counts the ones that ran out of it."""

    def __init__(self, timeout_s: float = REGEX_TIMEOUT_S) -> None:
        self.timeout_s = timeout_s
        self.num_timeouts = 0
        self._log = structlog.get_logger("specproxy.policy")

    def compile(self, pattern: str) -> Search:
        """A search for ``pattern`` anywhere in a text. Raises ValueError where it is no regular expression."""
        try:
            compiled = regex.compile(pattern)
        except regex.error as error:
            raise ValueError(str(error)) from None

        def search(text: str) -> bool:
            try:
                return compiled.search(text, timeout=self.timeout_s) is not None
            except TimeoutError:
                self.num_timeouts += 1
                self._log.warning("regex_timeout", pattern=pattern, chars=len(text), timeout_s=self.timeout_s)
                return False

        return search


def is_regex(text: str) -> bool:
    """Whether a text condition is written as ``/regex/``."""
    return len(text) > 2 and text.startswith("/") and text.endswith("/")


@dataclass(frozen=True, kw_only=True)
class TextPredicate(Predicate):
    """Satisfied by any of: exact values, patterns, being present, being absent. Of several values seen (the names of
    tools), one is enough. ``default``: what an absent field compares as."""

    exact: frozenset[str]
    searches: Mapping[str, Search]
    present: bool
    absent: bool
    default: str | None = None

    @classmethod
    def of(cls, condition: str | list[str], guard: RegexGuard, default: str | None = None) -> TextPredicate:
        """Compile a condition. Raises ValueError for a pattern that is none."""
        words = [condition] if isinstance(condition, str) else condition
        searches = {word: guard.compile(word[1:-1]) for word in words if is_regex(word)}
        return cls(
            wanted=" or ".join(words),
            exact=frozenset(word for word in words if word not in searches and word not in (PRESENT, ABSENT)),
            searches=searches,
            present=PRESENT in words,
            absent=ABSENT in words,
            default=default,
        )

    def __call__(self, seen: object) -> bool:
        """One value or pattern that ``seen`` has is enough."""
        if seen is None:
            if self.absent:
                return True
            seen = self.default
        elif self.present:
            return True
        if isinstance(seen, str):
            return self.has(seen)
        return isinstance(seen, tuple) and any(self.has(item) for item in seen)

    def has(self, text: str) -> bool:
        """Whether ``text`` is one of the values or holds one of the patterns."""
        return text in self.exact or any(search(text) for search in self.searches.values())

    def within(self, other: Predicate) -> bool:
        """As the base says. A value that stands for "absent" is satisfied without the field, "present" is not."""
        if not isinstance(other, TextPredicate):
            return False
        if (self.absent and not other(None)) or (self.present and not other.present):
            return False
        if self.default is not None and self.has(self.default) and not other(None):
            return False
        values = all(other.present or other.has(value) for value in self.exact)
        return values and all(other.present or pattern in other.searches for pattern in self.searches)


@dataclass(frozen=True, kw_only=True)
class NumberPredicate(Predicate):
    """Satisfied by a number within bounds, or by the field's presence or absence alone."""

    low: float = -math.inf
    low_open: bool = False
    high: float = math.inf
    high_open: bool = False
    presence: str | None = None
    default: float | None = None

    @classmethod
    def of(cls, condition: float | str | Mapping[str, float], default: float | None = None) -> NumberPredicate:
        """Compile a value, bounds by name (ge, gt, le, lt), or present or absent."""
        if isinstance(condition, str):
            return cls(presence=condition, default=default, wanted=condition)
        if isinstance(condition, int | float):
            return cls(low=condition, high=condition, default=default, wanted=f"{condition:g}")
        low = max(condition.get("ge", -math.inf), condition.get("gt", -math.inf))
        high = min(condition.get("le", math.inf), condition.get("lt", math.inf))
        return cls(
            low=low,
            low_open=condition.get("gt") == low,
            high=high,
            high_open=condition.get("lt") == high,
            default=default,
            wanted=" and ".join(f"{_SIGNS[name]} {bound:g}" for name, bound in condition.items()),
        )

    def __call__(self, seen: object) -> bool:
        """Whether ``seen`` lies within the bounds."""
        if self.presence is not None:
            return (seen is None) == (self.presence == ABSENT)
        value = self.default if seen is None else seen
        if not isinstance(value, int | float):
            return False
        above = value > self.low if self.low_open else value >= self.low
        return above and (value < self.high if self.high_open else value <= self.high)

    @property
    def impossible(self) -> bool:
        """Bounds that exclude each other."""
        return self.low > self.high or (self.low == self.high and (self.low_open or self.high_open))

    def within(self, other: Predicate) -> bool:
        """As the base says: the bounds of one lie inside the other's."""
        if not isinstance(other, NumberPredicate):
            return False
        if self.presence is not None:
            return self.presence == other.presence
        if other.presence is not None:
            return other.presence == PRESENT and not self(None)
        low = self.low > other.low or (self.low == other.low and (self.low_open or not other.low_open))
        high = self.high < other.high or (self.high == other.high and (self.high_open or not other.high_open))
        return low and high


@dataclass(frozen=True, kw_only=True)
class FlagPredicate(Predicate):
    """Satisfied by a flag's value, or by its presence or absence. An absent flag compares as false."""

    condition: bool | str

    @classmethod
    def of(cls, condition: bool | str) -> FlagPredicate:
        """Compile true, false, present or absent."""
        return cls(condition=condition, wanted=condition if isinstance(condition, str) else str(condition).lower())

    def __call__(self, seen: object) -> bool:
        """Whether ``seen`` is set as wanted."""
        if isinstance(self.condition, str):
            return (seen is None) == (self.condition == ABSENT)
        # A number (alternatives asked for) counts as set, even when it is 0.
        return (seen is not None and seen is not False) == self.condition

    def within(self, other: Predicate) -> bool:
        """As the base says, over the three values that a flag has."""
        return isinstance(other, FlagPredicate) and all(other(value) for value in (None, False, True) if self(value))

"""Match conditions, compiled. One evaluator serves both ``decide`` and ``policy explain``.

``evaluate`` returns whether a condition holds and which condition decided that; what the decider saw and wanted is
worked out only when somebody asks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from specproxy.config.validate import show
from specproxy.policy.facts import Facts
from specproxy.policy.predicates import FlagPredicate, NumberPredicate, Predicate, RegexGuard, TextPredicate

Read = Callable[[Facts], object]
Report = Callable[[tuple[str | int, ...], str], None]
Keys = tuple[str | int, ...]


@dataclass(frozen=True)
class Condition(ABC):
    """A node of a compiled match. ``where``: its path below ``match``, empty for the whole."""

    where: str

    @abstractmethod
    def evaluate(self, facts: Facts) -> tuple[bool, Condition]:
        """Whether it holds for ``facts``, and the condition that decided it."""

    @abstractmethod
    def describe(self, facts: Facts) -> tuple[str, str]:
        """What it saw in ``facts`` and what it wanted, in words."""


@dataclass(frozen=True)
class Leaf(Condition):
    """One predicate on one value. ``subject``: whose value, whatever group it stands in."""

    subject: str
    read: Read
    predicate: Predicate

    def evaluate(self, facts: Facts) -> tuple[bool, Condition]:
        """The predicate's word on the value."""
        return self.predicate(self.read(facts)), self

    def describe(self, facts: Facts) -> tuple[str, str]:
        """The value, and what the predicate wants."""
        return show_seen(self.read(facts)), self.predicate.wanted


@dataclass(frozen=True)
class AllOf(Condition):
    """Every part must hold; where one does not, that one decided."""

    parts: tuple[Condition, ...]

    def evaluate(self, facts: Facts) -> tuple[bool, Condition]:
        """Stops at the first part that fails."""
        decider: Condition = self
        for part in self.parts:
            holds, decider = part.evaluate(facts)
            if not holds:
                return False, decider
        return True, decider if len(self.parts) == 1 else self

    def describe(self, facts: Facts) -> tuple[str, str]:
        """Every part."""
        return "; ".join(_part(part, facts) for part in self.parts), "all of these"


@dataclass(frozen=True)
class AnyOf(Condition):
    """One part must hold; the first that does decided."""

    parts: tuple[Condition, ...]

    def evaluate(self, facts: Facts) -> tuple[bool, Condition]:
        """Stops at the first part that holds."""
        for part in self.parts:
            holds, decider = part.evaluate(facts)
            if holds:
                return True, decider
        return False, self

    def describe(self, facts: Facts) -> tuple[str, str]:
        """Every part."""
        return "; ".join(_part(part, facts) for part in self.parts), "at least one of these"


@dataclass(frozen=True)
class Not(Condition):
    """The part must not hold."""

    part: Condition

    def evaluate(self, facts: Facts) -> tuple[bool, Condition]:
        """The opposite of the part."""
        return not self.part.evaluate(facts)[0], self

    def describe(self, facts: Facts) -> tuple[str, str]:
        """The part."""
        return _part(self.part, facts), "that this does not hold"


def _part(part: Condition, facts: Facts) -> str:
    """A part of a group in one phrase: what decided it, what that saw and wanted."""
    decider = part.evaluate(facts)[1]
    seen, wanted = decider.describe(facts)
    return f"{decider.where} is {seen}, wanted {wanted}" if isinstance(decider, Leaf) else f"({seen}: {wanted})"


def failures(condition: Condition, facts: Facts) -> Iterator[Condition]:
    """The conditions that keep ``condition`` from holding: the first of a list, one per alternative of an ``any``."""
    holds, decider = condition.evaluate(facts)
    if holds:
        return
    if isinstance(decider, AnyOf):
        for part in decider.parts:
            yield from failures(part, facts)
    else:
        yield decider


def show_seen(value: object) -> str:
    """A value seen in a request, short enough for a line."""
    if value is None:
        return "absent"
    if isinstance(value, tuple):
        return ", ".join(show_seen(item) for item in value)
    return value if isinstance(value, str) and value.isidentifier() else show(value)


def leaves(condition: Condition) -> Iterator[Leaf]:
    """Every leaf below ``condition``."""
    if isinstance(condition, Leaf):
        yield condition
    elif isinstance(condition, Not):
        yield from leaves(condition.part)
    elif isinstance(condition, AllOf | AnyOf):
        for part in condition.parts:
            yield from leaves(part)


_TEXT: Mapping[str, tuple[Read, str | None]] = {
    "path": (lambda f: f.path, None),
    "model": (lambda f: f.model or None, None),
    "api_key": (lambda f: f.api_key or None, None),
    "response_format": (lambda f: f.response_format, "text"),
    "tools": (lambda f: f.tools, None),
    "tool_choice": (lambda f: f.tool_choice, None),
    "prediction": (lambda f: f.prediction, None),
    "prompt": (lambda f: f.prompt or None, None),
}
_NUMBERS: Mapping[str, tuple[Read, float | None]] = {
    "temperature": (lambda f: f.temperature, None),
    "top_p": (lambda f: f.top_p, None),
    "max_tokens": (lambda f: f.max_tokens, None),
    "n": (lambda f: f.n, 1),
    "prompt_tokens": (lambda f: f.prompt_tokens, None),
    "turns": (lambda f: f.turns, None),
    "load": (lambda f: f.load, None),
    "logprobs": (lambda f: f.logprobs, None),
}


class MatchCompiler:
    """Compiles checked ``match`` mappings. ``report`` is told of every fault that the types cannot show."""

    def __init__(self, guard: RegexGuard, report: Report) -> None:
        self._guard = guard
        self._report = report

    def compile(self, match: Mapping[str, Any], where: str = "", path: Keys = ()) -> Condition:
        """The condition that all keys of ``match`` hold. ``path`` is where it stands in the file."""
        parts = tuple(
            part
            for key, value in match.items()
            for part in self._key(key, value, f"{where}.{key}" if where else key, (*path, key))
        )
        return parts[0] if len(parts) == 1 else AllOf(where, parts)

    def _key(self, key: str, value: Any, where: str, path: Keys) -> Iterator[Condition]:
        if isinstance(value, dict) and not value:
            self._report(path, "is empty; an empty condition says nothing, leave it out")
        elif key in ("any", "all"):
            for index, item in enumerate(value):
                if not item:
                    self._report((*path, index), "is empty; an empty condition says nothing, leave it out")
            group = AllOf if key == "all" else AnyOf
            yield group(where, tuple(self.compile(m, f"{where}[{i}]", (*path, i)) for i, m in enumerate(value)))
        elif key == "not":
            yield Not(where, self.compile(value, where, path))
        elif key in ("header", "metadata") and isinstance(value, dict):
            for name, condition in value.items():
                subject = f"{key}.{name.lower() if key == 'header' else name}"
                yield from self._text(f"{where}.{name}", subject, _named(key, name), condition, (*path, name))
        elif key == "metadata":
            yield Leaf(where, key, lambda f: f.metadata or None, FlagPredicate.of(value))
        elif key in _TEXT:
            read, default = _TEXT[key]
            yield from self._text(where, key, read, value, path, default)
        elif isinstance(value, bool) or key == "stream":
            yield Leaf(where, key, _NUMBERS[key][0] if key in _NUMBERS else _stream, FlagPredicate.of(value))
        else:
            number, default_number = _NUMBERS[key]
            yield Leaf(where, key, number, NumberPredicate.of(value, default_number))

    def _text(
        self, where: str, subject: str, read: Read, condition: str | list[str], path: Keys, default: str | None = None
    ) -> Iterator[Leaf]:
        try:
            predicate = TextPredicate.of(condition, self._guard, default)
        except ValueError as error:
            self._report(path, f"expected a regular expression between slashes, got {show(condition)}: {error}")
            return
        yield Leaf(where, subject, read, predicate)


def _stream(facts: Facts) -> object:
    return facts.stream


def _named(key: str, name: str) -> Read:
    """Reads one header or one metadata value."""
    if key == "metadata":
        return lambda facts: facts.metadata.get(name)
    lower = name.lower()
    return lambda facts: facts.headers.get(lower)
